//! The journal's file, which outlives trouble with its disk.
//!
//! Once a read or a write has failed, the store does nothing more with the file, and what it says from memory need not be what the disk
//! holds. So the file is let go of then, and opened anew, before anything else is asked of it: what is read after a failure is read
//! from the disk, and a disk that has room again is written to again.

use std::fmt;
use std::path::Path;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use redb::{Database, ReadTransaction, ReadableDatabase};

use super::{JournalError, read_error};

type Open = Box<dyn Fn() -> Result<Database, redb::DatabaseError> + Send + Sync>;

/// The file.
pub(super) struct File {
    /// None where it could not be opened again.
    database: RwLock<Option<Database>>,
    open: Open,
    path: std::path::PathBuf,
}

impl File {
    /// Opens it, making it if it is not there.
    pub(super) fn open(path: &Path) -> Result<Self, JournalError> {
        let at = path.to_owned();
        Self::open_by(path, Box::new(move || Database::create(&at)))
    }

    fn open_by(path: &Path, open: Open) -> Result<Self, JournalError> {
        let file = Self { database: RwLock::new(None), open, path: path.to_owned() };
        file.open_again()?;
        Ok(file)
    }

    /// Does something with it. Where it fails, the file is opened anew: what it holds can be read then, if the disk lets it.
    pub(super) fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T, JournalError>) -> Result<T, JournalError> {
        if self.opened().is_none() {
            self.open_again()?;
        }
        let outcome = match &*self.opened() {
            Some(database) => work(database),
            // Somebody else met the next failure in between.
            None => Err(JournalError::Gone),
        };
        if let Err(JournalError::Access { .. }) = &outcome
            && let Err(error) = self.open_again()
        {
            tracing::error!(error = &error as &dyn std::error::Error, "the journal is closed until it can be opened");
        }
        outcome
    }

    pub(super) fn read<T>(
        &self,
        work: impl FnOnce(&ReadTransaction) -> Result<T, JournalError>,
    ) -> Result<T, JournalError> {
        self.with(|database| work(&database.begin_read().map_err(read_error)?))
    }

    fn opened(&self) -> RwLockReadGuard<'_, Option<Database>> {
        self.database.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_again(&self) -> Result<(), JournalError> {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        // Only one handle may have it.
        *database = None;
        let opened = (self.open)();
        let wrong = |source| JournalError::Open { path: self.path.clone(), source: Box::new(source) };
        *database = Some(opened.map_err(wrong)?);
        Ok(())
    }
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("File").field("path", &self.path).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use redb::{Builder, Durability, ReadableTable, StorageBackend, TableDefinition};

    use super::*;
    use crate::journal::write_error;

    const TABLE: TableDefinition<'_, &str, u64> = TableDefinition::new("table");

    /// A file on a disk that may have no room.
    #[derive(Debug)]
    struct Disk {
        file: std::fs::File,
        is_full: Arc<AtomicBool>,
    }

    impl Disk {
        fn written(&self) -> io::Result<()> {
            if self.is_full.load(Ordering::SeqCst) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        }
    }

    impl StorageBackend for Disk {
        fn len(&self) -> io::Result<u64> {
            Ok(self.file.metadata()?.len())
        }
        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.file.read_exact_at(out, offset)
        }
        fn set_len(&self, len: u64) -> io::Result<()> {
            self.written()?;
            self.file.set_len(len)
        }
        fn sync_data(&self) -> io::Result<()> {
            self.written()?;
            self.file.sync_data()
        }
        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.written()?;
            self.file.write_all_at(data, offset)
        }
    }

    fn put(file: &File, value: u64) -> Result<(), JournalError> {
        file.with(|database| {
            let mut transaction = database.begin_write().map_err(write_error)?;
            transaction.set_durability(Durability::Immediate).map_err(write_error)?;
            transaction.open_table(TABLE).map_err(write_error)?.insert("key", value).map_err(write_error)?;
            transaction.commit().map_err(write_error)
        })
    }

    fn get(file: &File) -> Result<Option<u64>, JournalError> {
        file.read(|transaction| {
            let table = transaction.open_table(TABLE).map_err(read_error)?;
            Ok(table
                .iter()
                .map_err(read_error)?
                .next()
                .transpose()
                .map_err(read_error)?
                .map(|(_, value)| value.value()))
        })
    }

    #[test]
    fn a_disk_that_has_room_again_is_written_to_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("journal.redb");
        let is_full = Arc::new(AtomicBool::new(false));
        let (at, full) = (path.clone(), Arc::clone(&is_full));
        let open = move || {
            let mut options = std::fs::File::options();
            let file = options.read(true).write(true).create(true).truncate(false).open(&at).expect("a file");
            Builder::new().create_with_backend(Disk { file, is_full: Arc::clone(&full) })
        };
        let file = File::open_by(&path, Box::new(open)).expect("opened");
        put(&file, 1).expect("written");
        is_full.store(true, Ordering::SeqCst);
        assert!(put(&file, 2).is_err(), "there is no room");
        assert!(put(&file, 3).is_err(), "nor the next time");
        is_full.store(false, Ordering::SeqCst);
        assert_eq!(get(&file).expect("read"), Some(1), "as it was before");
        put(&file, 4).expect("there is room");
        assert_eq!(get(&file).expect("read"), Some(4));
    }
}
