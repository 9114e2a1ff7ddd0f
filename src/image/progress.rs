//! Telling how far a reader is.

use std::io::{self, Read};

use super::Progress;

const TELL: u64 = 1 << 20;

/// A reader that reports every mebibyte and the end.
pub(super) struct Told<'a, R> {
    inner: R,
    step: &'a str,
    done: u64,
    total: Option<u64>,
    progress: &'a mut dyn FnMut(&Progress),
}

impl<'a, R: Read> Told<'a, R> {
    pub(super) fn new(
        inner: R,
        step: &'a str,
        total: Option<u64>,
        progress: &'a mut dyn FnMut(&Progress),
    ) -> Told<'a, R> {
        Told { inner, step, done: 0, total, progress }
    }
}

impl<R: Read> Read for Told<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        let before = self.done / TELL;
        self.done += n as u64;
        if n == 0 || self.done / TELL != before {
            (self.progress)(&Progress { step: self.step.to_owned(), done: self.done, total: self.total });
        }
        Ok(n)
    }
}
