//! A pool that can be filled: a file system of its own, of a few hundred MiB.

use std::path::PathBuf;
use std::process::Command;

use anyhow::ensure;

use crate::fleet::Fleet;

/// A file system of its own under a pool's directory. Dropping it takes it away.
#[derive(Debug)]
pub struct SmallPool {
    directory: PathBuf,
}

impl SmallPool {
    /// Puts one of that size in the place of a host's pool, whose agent must not run and has nothing there.
    ///
    /// # Errors
    /// It cannot be made or mounted.
    pub fn mount(fleet: &Fleet, host: &str, pool: &str, mib: u64) -> anyhow::Result<Self> {
        let directory = fleet.agent(host)?.pool(pool);
        let image = fleet.folder().join(format!("{host}-{pool}.img"));
        std::fs::File::create(&image)?.set_len(mib << 20)?;
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image))?;
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&directory))?;
        Ok(Self { directory })
    }

    /// Takes the room that there is, but for so many MiB; with 0 also what only root may take. The file that it is in.
    ///
    /// # Errors
    /// What is free cannot be told.
    pub fn fill(&self, left_mib: u64) -> anyhow::Result<PathBuf> {
        let path = self.directory.join("somebody_elses");
        let mut file = std::fs::File::create(&path)?;
        let bytes = vec![1; 1 << 20];
        while left_mib == 0 || self.free_mib()? > left_mib {
            if std::io::Write::write_all(&mut file, &bytes).is_err() {
                break;
            }
        }
        Ok(path)
    }

    /// What is free for everybody.
    ///
    /// # Errors
    /// It cannot be told.
    pub fn free_mib(&self) -> anyhow::Result<u64> {
        let status = rustix::fs::statvfs(&self.directory)?;
        Ok((status.f_bavail * status.f_frsize) >> 20)
    }
}

impl Drop for SmallPool {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg("--lazy").arg(&self.directory));
    }
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
