//! What crosses between two agents: the frozen opening of a lane, and the frames that follow it.
//!
//! ```text
//!   source                                   target
//!     │ ── TLS 1.3, certificates both ways ──▶ │
//!     │ ── hello: versions offered ──────────▶ │   hello   16 bytes, frozen
//!     │ ◀───────────── hello: version chosen ──│
//!     │ ── Attach{job, token, session, …} ───▶ │   attach  MessagePack, at most 4 KiB
//!     │ ◀──── Attached{received} or Refused ───│
//!     │ ◀═════════════ frames ════════════════▶│   frame   24-byte header, raw payload
//!     │ ◀═════════════ control ═══════════════▶│   message what the agents say in control frames
//! ```

pub mod attach;
pub mod frame;
pub mod hello;
pub mod message;
