//! The run's page, its figures, TensorBoard events.
