//! Take dealt connections.
pub mod page;
pub mod wire;
