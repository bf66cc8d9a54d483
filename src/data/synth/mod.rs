//! Generated EEG: a faithful dataset for the demo and for tests.
