//! Scores and their uncertainty.
