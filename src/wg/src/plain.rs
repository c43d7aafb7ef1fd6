//! placeholder
/// placeholder
pub struct Plain;
