//! The data plane between two agents.
