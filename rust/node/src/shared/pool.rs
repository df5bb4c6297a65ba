//! The memory files of this process that nobody uses at the moment.
//!
//! A fresh page takes several times as long to fill as one that was used before, so files are kept for a while.

use std::time::{Duration, Instant};

use super::memory::MemoryFile;

/// A file that was not used for so long is closed.
pub(crate) const IDLE_TIME: Duration = Duration::from_secs(1);
/// Files that are kept; each is a descriptor.
const IDLE_FILES: usize = 16;
/// Files up to this size serve for any smaller message.
const SMALL: usize = 4 << 20;

#[derive(Debug, Default)]
pub(crate) struct Pool {
    /// In the order in which they came back.
    idle: Vec<(MemoryFile, Instant)>,
}

impl Pool {
    /// Takes the smallest file that holds `len` bytes and is not far too large.
    pub(crate) fn take(&mut self, len: usize) -> Option<MemoryFile> {
        let most = len.saturating_mul(2).max(SMALL);
        let fits = |file: &MemoryFile| (len..=most).contains(&file.capacity());
        let (at, _) = self
            .idle
            .iter()
            .enumerate()
            .rev()
            .filter(|(_, (file, _))| fits(file))
            .min_by_key(|(_, (file, _))| file.capacity())?;
        Some(self.idle.remove(at).0)
    }

    /// Takes a file back; returns those that are to be closed so that no more than `most` bytes are kept.
    pub(crate) fn put(&mut self, file: MemoryFile, most: usize) -> Vec<MemoryFile> {
        self.idle.push((file, Instant::now()));
        let mut over = Vec::new();
        while self.bytes() > most || self.idle.len() > IDLE_FILES {
            over.push(self.idle.remove(0).0);
        }
        over
    }

    /// Takes out the files that have been idle for long.
    pub(crate) fn expired(&mut self, now: Instant) -> Vec<MemoryFile> {
        let old = self
            .idle
            .iter()
            .take_while(|(_, since)| now.saturating_duration_since(*since) >= IDLE_TIME)
            .count();
        self.idle.drain(..old).map(|(file, _)| file).collect()
    }

    /// Takes out all files.
    pub(crate) fn drain(&mut self) -> Vec<MemoryFile> {
        self.idle.drain(..).map(|(file, _)| file).collect()
    }

    /// When the first of the files will have been idle for long.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.idle.first().map(|(_, since)| *since + IDLE_TIME)
    }

    pub(crate) fn files(&self) -> impl Iterator<Item = &MemoryFile> {
        self.idle.iter().map(|(file, _)| file)
    }

    fn bytes(&self) -> usize {
        self.idle.iter().map(|(file, _)| file.warm_bytes()).sum()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn filled(len: usize) -> MemoryFile {
        let mut file = MemoryFile::create(len).unwrap();
        file.fill::<()>(&[(0, &vec![1; len])], &|| Ok(())).unwrap();
        file
    }

    #[test]
    fn the_smallest_file_that_fits_is_taken() {
        let mut pool = Pool::default();
        for len in [8 << 20, 5 << 20, 40 << 20] {
            assert!(pool.put(filled(len), usize::MAX).is_empty());
        }
        assert_eq!(pool.take(4 << 20).unwrap().capacity(), 5 << 20);
        assert!(pool.take(9 << 20).is_none());
        assert_eq!(pool.take(6 << 20).unwrap().capacity(), 8 << 20);
    }

    #[test]
    fn no_more_than_the_limit_is_kept() {
        let mut pool = Pool::default();
        assert!(pool.put(filled(2 << 20), 3 << 20).is_empty());
        let over = pool.put(filled(2 << 20), 3 << 20);
        assert_eq!((over.len(), pool.files().count()), (1, 1));
        assert_eq!(pool.put(filled(4 << 20), 3 << 20).len(), 2);
    }

    #[test]
    fn files_expire_in_their_order() {
        let mut pool = Pool::default();
        pool.put(filled(1 << 20), usize::MAX);
        let expiry = pool.next_expiry().unwrap();
        assert!(pool.expired(expiry - Duration::from_millis(1)).is_empty());
        assert_eq!(pool.expired(expiry).len(), 1);
        assert!(pool.next_expiry().is_none());
    }

    #[test]
    fn a_file_keeps_what_is_written_over_its_pages_and_beyond() {
        let mut file = MemoryFile::create(2 << 20).unwrap();
        file.fill::<()>(&[(0, &vec![1; 1 << 20])], &|| Ok(())).unwrap();
        let bytes: Vec<u8> = (0..1_100_000u32).map(|i| (i % 251) as u8).collect();
        file.fill::<()>(&[(0, &bytes)], &|| Ok(())).unwrap();
        let map = super::super::memory::map_private(file.descriptor(), bytes.len()).unwrap();
        assert!(map[..] == bytes[..]);
    }
}
