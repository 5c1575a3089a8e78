//! Who may run a VM.
