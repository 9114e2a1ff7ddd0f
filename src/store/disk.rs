//! The database file: format, opening, rows, SQLite's errors as ours.

use std::{
    collections::HashMap,
    fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, ffi, params};

use super::{
    Error, Key,
    body::{Body, Dictionary},
    state::{Held, Planned},
};

/// Version of the file's layout, in `user_version`.
const FORMAT: i64 = 1;
/// Revisions are taken from a range that is reserved on disk, so that those of writes in memory are never given out
/// again after a power cut. The larger it is, the rarer it is written: 115 days of one heartbeat in 10 s.
const RESERVE: u64 = 1_000_000;
/// Part of the range that is kept for changes nobody asked for (expiry), so that they never need the disk.
pub(super) const SLACK: u64 = 10_000;

/// A row as read.
pub(super) struct Row {
    pub(super) revision: u64,
    pub(super) index: String,
    pub(super) body: Body,
}

/// What one transaction does to one row.
pub(super) enum Op {
    Put { resource: Arc<str>, namespace: Arc<str>, name: Arc<str>, revision: u64, index: Box<str>, body: Body },
    Remove,
}

impl Op {
    /// Writes an object that is in memory to its row.
    pub(super) fn put(held: &Held) -> Self {
        let (Key { resource, namespace, name }, index) = (held.key.clone(), held.index.clone());
        Self::Put { resource, namespace, name, revision: held.revision, index, body: held.body.clone() }
    }

    /// Writes a changed object to its row; `None` for a delete.
    pub(super) fn of(change: &Planned) -> Option<Self> {
        let (Key { resource, namespace, name }, index) = (change.key.clone(), change.index.clone());
        Some(Self::Put { resource, namespace, name, revision: change.revision, index, body: change.body.clone()? })
    }
}

/// What opening found.
pub(super) struct Opened {
    pub(super) writer: Writer,
    pub(super) reader: Reader,
    pub(super) dictionaries: Vec<Dictionary>,
    /// No revision above this was ever given out.
    pub(super) revision: u64,
}

/// The connection that reads single rows.
#[derive(Debug)]
pub(super) struct Reader {
    connection: Connection,
    path: PathBuf,
}

/// The only connection that writes.
pub(super) struct Writer {
    connection: Connection,
    path: PathBuf,
    reserved: u64,
    // Held for the time the database is open; the lock goes with the file descriptor.
    _lock: File,
}

/// Opens or creates the database: lock, permissions, integrity after an unclean stop, first revision reservation.
pub(super) fn open(path: &Path) -> Result<Opened, Error> {
    let lock = prepare_files(path)?;
    let fail = |source| database_error(path, source);
    let mut connection = connect(path).map_err(fail)?;
    let found: i64 = connection.query_row("PRAGMA user_version", [], |r| r.get(0)).map_err(fail)?;
    if found > FORMAT {
        return Err(Error::Newer { path: path.into(), found, supported: FORMAT });
    }
    if found == 0 {
        create_tables(&mut connection).map_err(fail)?;
    }
    let (revision, clean): (i64, bool) =
        connection.query_row("SELECT reserved, clean FROM meta", [], |r| Ok((r.get(0)?, r.get(1)?))).map_err(fail)?;
    if !clean {
        check_integrity(&connection, path)?;
    }
    let dictionaries = load_dictionaries(&connection).map_err(fail)?;
    let mut writer = Writer { connection, path: path.into(), reserved: 0, _lock: lock };
    let revision = from_sql(revision);
    match writer.write(&HashMap::new(), &[], revision) {
        // What is there can be read; the first write that finds room makes the reservation.
        Err(e @ Error::Full { .. }) => tracing::warn!("{e}: writes fail until there is room"),
        other => other?,
    }
    let connection = connect(path).map_err(fail)?;
    connection.pragma_update(None, "query_only", true).map_err(fail)?;
    Ok(Opened { writer, reader: Reader { connection, path: path.into() }, dictionaries, revision })
}

fn prepare_files(path: &Path) -> Result<File, Error> {
    let failed = |action, path: &Path, source| Error::File { action, path: path.into(), source };
    if let Some(directory) = path.parent().filter(|d| !d.as_os_str().is_empty() && !d.exists()) {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.map_err(|e| failed("create directory", directory, e))?;
    }
    let create = |path: &Path| {
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
        file.map_err(|e| match e.kind() {
            io::ErrorKind::StorageFull => Error::Full { path: path.into() },
            io::ErrorKind::ReadOnlyFilesystem => Error::ReadOnly { path: path.into(), detail: e.to_string() },
            _ => failed("open", path, e),
        })
    };
    let mut lock_path = path.as_os_str().to_owned();
    lock_path.push("-lock");
    let lock = create(Path::new(&lock_path))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(Error::InUse { path: path.into() }),
        Err(TryLockError::Error(e)) => return Err(failed("lock", Path::new(&lock_path), e)),
    }
    // SQLite gives its -wal and -shm files the permissions of the database file.
    create(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(|e| failed("set permissions of", path, e))?;
    Ok(lock)
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    // Each connection is one thread's at a time.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    // page_size has an effect only on an empty file and before WAL mode. 1 KiB pages: a changed object of 400
    // compressed bytes then costs one small page in the log. The size limit cuts a log that a burst has grown.
    connection.execute_batch(
        "PRAGMA page_size = 1024; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
         PRAGMA wal_autocheckpoint = 4000; PRAGMA journal_size_limit = 8388608; PRAGMA cache_size = -256;
         PRAGMA temp_store = MEMORY;",
    )?;
    connection.set_prepared_statement_cache_capacity(8);
    Ok(connection)
}

fn create_tables(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    // No index on (res, ns, name): the one in memory keeps names unique, and each on disk would cost flash.
    transaction.execute_batch(
        "CREATE TABLE obj(id INTEGER PRIMARY KEY, res TEXT NOT NULL, ns TEXT NOT NULL, name TEXT NOT NULL,
                          rv INTEGER NOT NULL, idx TEXT NOT NULL, data BLOB NOT NULL);
         CREATE TABLE dict(id INTEGER PRIMARY KEY, res TEXT NOT NULL, bytes BLOB NOT NULL);
         CREATE TABLE meta(reserved INTEGER NOT NULL, clean INTEGER NOT NULL);
         INSERT INTO meta VALUES (0, 1);",
    )?;
    transaction.pragma_update(None, "user_version", FORMAT)?;
    transaction.commit()
}

fn check_integrity(connection: &Connection, path: &Path) -> Result<(), Error> {
    let verdict = connection.query_row("PRAGMA quick_check(1)", [], |r| r.get::<_, String>(0));
    let detail = match verdict {
        Ok(text) if text == "ok" => return Ok(()),
        Ok(text) => text,
        Err(e) => return Err(database_error(path, e)),
    };
    Err(Error::Corrupt { path: path.into(), detail: detail.replace('\n', " ") })
}

fn load_dictionaries(connection: &Connection) -> rusqlite::Result<Vec<Dictionary>> {
    let mut statement = connection.prepare("SELECT id, res, bytes FROM dict ORDER BY id")?;
    let rows = statement.query_map([], |r| {
        Ok(Dictionary { id: r.get(0)?, resource: r.get(1)?, bytes: r.get::<_, Vec<u8>>(2)?.into() })
    })?;
    rows.collect()
}

impl Writer {
    /// Whether revisions up to this one may be given out without writing to disk.
    pub(super) fn covers(&self, revision: u64) -> bool {
        revision + SLACK <= self.reserved
    }

    /// One transaction. Afterwards [`Writer::covers`] holds for `revision`.
    pub(super) fn write(&mut self, ops: &HashMap<i64, Op>, new: &[Dictionary], revision: u64) -> Result<(), Error> {
        let reserved = if revision + RESERVE / 2 > self.reserved { revision + RESERVE } else { self.reserved };
        self.transact(ops, new, reserved, false)?;
        self.reserved = reserved;
        Ok(())
    }

    /// Marks the clean stop at a revision, merges the log into the file.
    pub(super) fn close(mut self, revision: u64) -> Result<(), Error> {
        self.transact(&HashMap::new(), &[], revision, true)?;
        let path = self.path;
        self.connection.close().map_err(|(_, e)| database_error(&path, e))
    }

    fn transact(
        &mut self,
        ops: &HashMap<i64, Op>,
        new: &[Dictionary],
        reserved: u64,
        clean: bool,
    ) -> Result<(), Error> {
        let mut run = || -> rusqlite::Result<()> {
            let transaction = self.connection.transaction()?;
            for Dictionary { id, resource, bytes } in new {
                transaction.execute("INSERT INTO dict VALUES (?1, ?2, ?3)", params![id, resource, bytes])?;
            }
            for (id, op) in ops {
                match op {
                    Op::Put { resource, namespace, name, revision, index, body } => transaction
                        .prepare_cached("REPLACE INTO obj VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?
                        .execute(params![id, resource, namespace, name, to_sql(*revision), index, body.as_row()])?,
                    Op::Remove => transaction.prepare_cached("DELETE FROM obj WHERE id = ?1")?.execute([id])?,
                };
            }
            if reserved != self.reserved || clean {
                let mut statement = transaction.prepare_cached("UPDATE meta SET reserved = ?1, clean = ?2")?;
                statement.execute(params![to_sql(reserved), clean])?;
            }
            transaction.commit()
        };
        // Dropping the transaction of a failed run rolls it back.
        run().map_err(|e| database_error(&self.path, e))
    }

    /// A row that is known to exist.
    pub(super) fn row(&self, id: i64) -> Result<Row, Error> {
        read_row(&self.connection, &self.path, id)
    }

    /// As [`Reader::shrink`].
    pub(super) fn shrink(&self) {
        shrink(&self.connection);
    }
}

impl Reader {
    /// Forgets pages, which the kernel has too.
    pub(super) fn shrink(&self) {
        shrink(&self.connection);
    }

    /// A row that is known to exist.
    pub(super) fn row(&self, id: i64) -> Result<Row, Error> {
        read_row(&self.connection, &self.path, id)
    }

    /// A row that is known to exist, with namespace and name.
    pub(super) fn named_row(&self, id: i64) -> Result<(String, String, Row), Error> {
        let read = || {
            let mut statement =
                self.connection.prepare_cached("SELECT rv, idx, data, ns, name FROM obj WHERE id = ?1")?;
            statement.query_row([id], |r| Ok((r.get(3)?, r.get(4)?, to_row(r)?))).optional()
        };
        read().map_err(|e| database_error(&self.path, e))?.ok_or_else(|| missing(&self.path, id))
    }

    /// Visits every row without its body: id, resource, namespace, name, revision, index keys.
    pub(super) fn scan(&self, mut visit: impl FnMut(i64, &str, &str, &str, u64, &str)) -> Result<(), Error> {
        let mut read = || {
            let mut statement = self.connection.prepare("SELECT id, res, ns, name, rv, idx FROM obj")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let text = |column| row.get_ref(column).and_then(|v| Ok(v.as_str()?));
                visit(row.get(0)?, text(1)?, text(2)?, text(3)?, from_sql(row.get(4)?), text(5)?);
            }
            Ok(())
        };
        read().map_err(|e| database_error(&self.path, e))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

fn shrink(connection: &Connection) {
    if let Err(error) = connection.execute_batch("PRAGMA shrink_memory") {
        tracing::debug!(%error, "the database keeps its pages");
    }
}

fn read_row(connection: &Connection, path: &Path, id: i64) -> Result<Row, Error> {
    let read = || {
        let mut statement = connection.prepare_cached("SELECT rv, idx, data FROM obj WHERE id = ?1")?;
        statement.query_row([id], to_row).optional()
    };
    read().map_err(|e| database_error(path, e))?.ok_or_else(|| missing(path, id))
}

fn to_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<Row> {
    let body = Body::from_row(row.get_ref(2)?.as_blob()?);
    Ok(Row { revision: from_sql(row.get(0)?), index: row.get(1)?, body })
}

fn missing(path: &Path, id: i64) -> Error {
    Error::Corrupt { path: path.into(), detail: format!("row {id} is missing") }
}

// SQLite's integers are signed; revisions stay far below 2^63.
fn to_sql(revision: u64) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

fn from_sql(revision: i64) -> u64 {
    u64::try_from(revision).unwrap_or_default()
}

/// SQLite's error as ours.
pub(super) fn database_error(path: &Path, source: rusqlite::Error) -> Error {
    let path = path.to_path_buf();
    use rusqlite::Error::{FromSqlConversionFailure, IntegralValueOutOfRange, InvalidColumnType, Utf8Error};
    if let FromSqlConversionFailure(..) | IntegralValueOutOfRange(..) | InvalidColumnType(..) | Utf8Error(..) = source {
        return Error::Corrupt { path, detail: source.to_string() };
    }
    if source.sqlite_error().is_some_and(|e| e.extended_code == ffi::SQLITE_IOERR_SHMSIZE) {
        return Error::Full { path };
    }
    match source.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => Error::Full { path },
        Some(ErrorCode::ReadOnly) => Error::ReadOnly { path, detail: source.to_string() },
        // To SQLite an I/O error like any other; to who has to mend it, not.
        Some(ErrorCode::SystemIoFailure) if on_read_only(&path) => {
            Error::ReadOnly { path, detail: "the file system takes no writes, perhaps after a disk error".into() }
        }
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            Error::Corrupt { path, detail: source.to_string() }
        }
        _ => Error::Database { path, source },
    }
}

/// Whether the file system takes nothing any more. What statfs(2) says is not enough: after an error ext4 refuses
/// writes without calling itself read-only.
fn on_read_only(path: &Path) -> bool {
    let probe = OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE).open(path.parent().unwrap_or(path));
    probe.is_err_and(|e| e.kind() == io::ErrorKind::ReadOnlyFilesystem)
}
