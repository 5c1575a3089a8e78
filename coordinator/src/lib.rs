//! Coordinator.

pub mod view;
