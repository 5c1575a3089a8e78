//! Coordinator.

pub mod pki;
pub mod view;
