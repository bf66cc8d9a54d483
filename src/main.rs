//! The program `engine`.
fn main() {}
