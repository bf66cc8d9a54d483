//! The run's page, its figures, TensorBoard events.
mod tensorboard;
pub use tensorboard::EventWriter;
