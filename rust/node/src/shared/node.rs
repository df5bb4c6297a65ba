//! Shared memory as a process uses it: what goes into it, who has it, and what comes back.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use pydist_proto::body::{Body, Segment};
use pydist_proto::frame::{self, FileName, Header, Layout};
use pydist_proto::ids::{ProcId, RemoteRef};
use pydist_proto::message::{Message, Unmapped};

use super::memory::{FillError, MemoryFile};
use super::{INLINE_MOST, Origin, Returned, SHARED_LEAST, SharedFile};
use crate::link::{Link, SendError};
use crate::node::Node;
use crate::sending::Payload;

/// A message of which the long segments lie in a memory file.
pub(crate) struct Shared<'a> {
    pub(crate) header: Header,
    pub(crate) segments: &'a [&'a [u8]],
    pub(crate) refs: &'a [RemoteRef],
    pub(crate) file: Arc<SharedFile>,
}

impl Node {
    /// Whether [`Node::keep`] would try to copy segments into shared memory.
    pub fn is_worth_sharing(&self, segments: &[&[u8]]) -> bool {
        let total: usize = segments.iter().skip(1).map(|s| s.len()).sum();
        total as u64 >= SHARED_LEAST && self.sharing.idle_max > 0
    }

    /// Copies segments into memory of the core, which is shared memory where they are long.
    pub fn keep(&self, segments: &[&[u8]], refs: &[RemoteRef]) -> std::io::Result<Body> {
        let shared = self.place::<()>(segments, &|| Ok(())).ok().flatten();
        let view = match shared.map(|(file, layout)| (file.view(), layout)) {
            Some((Ok(view), layout)) => Some((Arc::new(view), layout)),
            _ => None,
        };
        let copy = |(index, bytes): (usize, &&[u8])| {
            let offset = view
                .as_ref()
                .and_then(|(view, layout)| Some((view, layout.offsets[index]?)));
            match offset.map(|(view, from)| (view, usize::try_from(from))) {
                Some((view, Ok(from))) => Ok(Segment::Shared(view.clone(), from..from + bytes.len())),
                _ => Segment::copy_of(bytes),
            }
        };
        let segments = segments.iter().enumerate().map(copy).collect::<Result<_, _>>()?;
        let refs = refs.to_vec();
        Ok(Body { refs, segments })
    }

    /// Sends through shared memory, where the other end is on this machine and the message is large.
    ///
    /// Returns none where the message is to be streamed.
    pub(crate) fn send_shared(
        &self,
        pid: ProcId,
        link: &Arc<Link>,
        header: Header,
        payload: &Payload<'_>,
    ) -> Option<Result<(), SendError>> {
        self.settle_returned();
        let Payload { segments, refs, .. } = *payload;
        let kept = payload.kept.and_then(super::file_of);
        let kept = kept.filter(|_| {
            segments
                .first()
                .is_none_or(|data| data.len() as u64 <= INLINE_MOST)
        });
        if kept.is_none() && !self.is_worth_sharing(segments) || !self.shares_with(pid, link) {
            return None;
        }
        let signalled = payload.signalled.unwrap_or(&|| false);
        if let Err(error) = link.await_room(signalled) {
            return Some(Err(error));
        }
        let file = match kept {
            Some((file, _)) => file,
            None => {
                let go_on = || match link.is_closed() {
                    true => Err(SendError::Closed),
                    false if signalled() => Err(SendError::Signal),
                    false => Ok(()),
                };
                match self.place(segments, &go_on) {
                    Ok(placed) => placed?.0,
                    Err(error) => return Some(Err(error)),
                }
            }
        };
        let shared = Shared {
            header,
            segments,
            refs,
            file,
        };
        Some(self.lend(link, &shared))
    }

    /// Sends a body of the core through shared memory where it lies there; false where it is to be streamed.
    pub(crate) fn send_shared_body(
        &self,
        pid: ProcId,
        link: &Arc<Link>,
        header: Header,
        body: &Body,
    ) -> bool {
        let Some((file, _)) = super::file_of(body) else {
            return false;
        };
        if !self.shares_with(pid, link) {
            return false;
        }
        let segments: Vec<&[u8]> = body.segments.iter().map(Segment::as_slice).collect();
        let shared = Shared {
            header,
            segments: &segments,
            refs: &body.refs,
            file,
        };
        // Where the connection is closed, its end is told to whoever waits.
        let _ = self.lend(link, &shared);
        true
    }

    /// Sends the descriptor of a file, and notes who has it before that.
    fn lend(&self, link: &Arc<Link>, shared: &Shared<'_>) -> Result<(), SendError> {
        let Some(fd) = shared.file.descriptor() else {
            return Err(SendError::Closed);
        };
        let sharing = &self.sharing;
        let number = sharing.next_number.fetch_add(1, Ordering::Relaxed);
        sharing
            .lent
            .lock()
            .insert((link.token, number), shared.file.clone());
        let name = FileName {
            number,
            inode: shared.file.inode(),
            descriptor: fd.as_raw_fd().cast_unsigned(),
        };
        link.send_file(shared, name, fd);
        if link.is_closed() {
            self.forget_lent(link.token);
            return Err(SendError::Closed);
        }
        Ok(())
    }

    /// Whether a connection can carry descriptors to a process of this machine.
    fn shares_with(&self, pid: ProcId, link: &Link) -> bool {
        let same_host = |machine: &pydist_proto::machine::Machine<_>| {
            machine
                .member(pid)
                .is_some_and(|member| member.host == self.config.me.host)
        };
        link.is_local() && same_host(&self.machine.lock())
    }

    /// Copies the long segments into a file; none where that is not worth it or not possible.
    fn place<E>(
        &self,
        segments: &[&[u8]],
        go_on: &dyn Fn() -> Result<(), E>,
    ) -> Result<Option<(Arc<SharedFile>, Layout)>, E> {
        if !self.is_worth_sharing(segments) {
            return Ok(None);
        }
        let lengths = segments.iter().map(|s| s.len() as u64);
        let Some(layout) =
            Layout::of(lengths).filter(|l| l.shared >= SHARED_LEAST && l.inline <= INLINE_MOST)
        else {
            return Ok(None);
        };
        match self.fill(segments, &layout, go_on) {
            Ok(file) => Ok(Some((file, layout))),
            Err(FillError::GivenUp(error)) => Err(error),
            Err(FillError::NotPossible) => {
                self.sharing.fallbacks.fetch_add(1, Ordering::Relaxed);
                Ok(None)
            }
        }
    }

    fn fill<E>(
        &self,
        segments: &[&[u8]],
        layout: &Layout,
        go_on: &dyn Fn() -> Result<(), E>,
    ) -> Result<Arc<SharedFile>, FillError<E>> {
        let node = self.this.upgrade().ok_or(FillError::NotPossible)?;
        if self.sharing.own.load(Ordering::Relaxed) >= self.sharing.files_max {
            return Err(FillError::NotPossible);
        }
        let outside = |_| FillError::NotPossible;
        let len = usize::try_from(layout.shared).map_err(outside)?;
        let mut parts = Vec::with_capacity(segments.len());
        for (bytes, offset) in segments.iter().zip(&layout.offsets) {
            if let Some(offset) = offset {
                parts.push((usize::try_from(*offset).map_err(outside)?, *bytes));
            }
        }
        self.settle_returned();
        let pooled = self.sharing.pool.lock().take(len);
        let mut file = match pooled {
            Some(file) => file,
            None => MemoryFile::create(len)?,
        };
        match file.fill(&parts, go_on) {
            Ok(()) => Ok(SharedFile::new(&node, len, Origin::Own(file))),
            Err(error) => {
                self.pool_file(file);
                Err(error)
            }
        }
    }

    /// Something is let go of, on any thread, with any lock held.
    pub(super) fn take_back(&self, returned: Returned) {
        if self.sharing.forked.load(Ordering::SeqCst) {
            // The descriptors of a forked child were closed behind the backs of those who own them.
            std::mem::forget(returned);
            return;
        }
        self.sharing.returned.push(returned);
        if !self.sharing.signalled.swap(true, Ordering::SeqCst) {
            self.wake_reader();
        }
    }

    /// Takes up what finalizers have let go of: own files may be used again, and the senders of others are told.
    pub(crate) fn settle_returned(&self) {
        if self.sharing.returned.is_empty() {
            return;
        }
        self.sharing.signalled.store(false, Ordering::SeqCst);
        let mut unmapped: BTreeMap<u64, Vec<Unmapped>> = BTreeMap::new();
        while let Some(returned) = self.sharing.returned.pop() {
            match returned {
                Returned::Own { file, reusable: true } => self.pool_file(file),
                Returned::Own { file, .. } => file.close(),
                Returned::Received {
                    token,
                    number,
                    copied,
                } => unmapped
                    .entry(token)
                    .or_default()
                    .push(Unmapped { file: number, copied }),
            }
        }
        for (token, files) in unmapped {
            let link = self.connections.read().get(&token).cloned();
            if let Some(link) = link {
                let encoded = frame::encode(Message::Unmapped { files });
                link.send_owned(encoded.header, encoded.body.into_body(), false);
            }
        }
    }

    fn pool_file(&self, file: MemoryFile) {
        let alone = self.connections.read().is_empty();
        let most = if alone || self.is_closing() {
            0
        } else {
            self.sharing.idle_max
        };
        let mut pool = self.sharing.pool.lock();
        let over = pool.put(file, most);
        let expiry = pool.next_expiry();
        drop(pool);
        over.into_iter().for_each(MemoryFile::close);
        if let Some(expiry) = expiry {
            self.driver.arm(expiry);
        }
    }

    /// Closes the files that have not been used for a while, or all, once there is nobody to send them to.
    pub(crate) fn trim_pool(&self, now: Instant) {
        let alone = self.connections.read().is_empty();
        let mut pool = self.sharing.pool.lock();
        let expired = if alone { pool.drain() } else { pool.expired(now) };
        let expiry = pool.next_expiry();
        drop(pool);
        expired.into_iter().for_each(MemoryFile::close);
        if let Some(expiry) = expiry {
            self.driver.arm(expiry);
        }
    }

    /// A receiver has unmapped files.
    pub(crate) fn handle_unmapped(&self, token: u64, files: &[Unmapped]) {
        let mut lent = self.sharing.lent.lock();
        let returned: Vec<_> = files
            .iter()
            .filter_map(|unmapped| {
                let file = lent.remove(&(token, unmapped.file))?;
                if unmapped.copied {
                    file.unsure.store(true, Ordering::SeqCst);
                }
                Some(file)
            })
            .collect();
        drop(lent);
        drop(returned);
        self.settle_returned();
    }

    /// A connection is closed: its process may live on and map what it has got, so those files are not used again.
    pub(crate) fn forget_lent(&self, token: u64) {
        let mut lent = self.sharing.lent.lock();
        let lost: Vec<_> = lent
            .extract_if(|(to, _), _| *to == token)
            .map(|(_, file)| file)
            .collect();
        drop(lent);
        for file in &lost {
            file.unsure.store(true, Ordering::SeqCst);
        }
        drop(lost);
        self.settle_returned();
    }
}
