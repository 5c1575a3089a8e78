//! The guests of this host.
