//! Where the witness' kernel and initramfs are.

use std::path::{Path, PathBuf};

use anyhow::bail;

/// What a test guest boots from.
#[derive(Debug, Clone)]
pub struct GuestImage {
    /// Debian's cloud kernel.
    pub kernel: PathBuf,
    /// The initramfs with the witness.
    pub initrd: PathBuf,
}

impl GuestImage {
    /// In `STERNA_GUEST_DIR`, or where `cargo xtask setup` puts it.
    ///
    /// # Errors
    /// It is not there; the command that makes it is in the error.
    pub fn find() -> anyhow::Result<Self> {
        let folder = std::env::var_os("STERNA_GUEST_DIR").map_or_else(|| target().join("guest"), PathBuf::from);
        let image = Self { kernel: folder.join("vmlinuz"), initrd: folder.join("initrd") };
        if !image.kernel.is_file() || !image.initrd.is_file() {
            bail!("no test guest in {}; make it with: cargo xtask setup", folder.display());
        }
        Ok(image)
    }
}

/// Cargo's target directory: that of the tests, which run from it.
pub(crate) fn target() -> PathBuf {
    let here = std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    let root = here.parent().unwrap_or(Path::new("."));
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |folder| root.join(folder))
}
