//! What crosses between two agents.
