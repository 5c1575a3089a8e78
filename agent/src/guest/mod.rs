//! The guests of this host: QEMU processes that the agent starts, finds again, and ends.
//!
//! A guest is no child of the agent in anything but name: it has its own session, under systemd its own scope, and goes
//! on when the agent is stopped, upgraded or killed. What ties the two together is the runtime directory.

pub mod adapter;
pub mod console;
pub mod health;
pub mod hooks;
pub mod launcher;
pub mod probe_command;
pub mod process;
pub mod storage_daemon;
pub mod tap;
