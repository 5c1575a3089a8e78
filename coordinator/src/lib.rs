//! The fleet's side of Sterna: what decides, and never touches a guest or a bulk byte; and the command line.
//!
//! ```text
//!   cli ─▶ client ─▶ api ──┐                    ┌─▶ store   events, commands, buckets
//!   heartbeats ────▶ bus ──┼─▶ service (apply) ─┼─▶ bus     requests to agents, answers
//!   events ────────▶ store ┘   fleet, planner,  └─▶ feed    JSON for people and dashboards
//!   lease ──── may it? ───────▶ scheduler
//! ```

pub mod api;
pub mod bus;
pub mod cli;
pub mod client;
pub mod config;
pub mod feed;
pub mod fence;
pub mod fleet;
mod google;
pub mod lease;
pub mod notify;
pub mod pki;
pub mod planner;
pub mod scheduler;
pub mod service;
pub mod store;
pub mod view;

#[cfg(test)]
mod schema;
