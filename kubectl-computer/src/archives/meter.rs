//! The progress bar of a download. It is on standard error, and only when that is a terminal. It must never write to standard output, where a file may be printed.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::screen;

/// What the bar shows.
const SHOWN: &str = " {bar:30} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left";

/// A progress bar. It is removed when it is dropped.
pub struct Meter {
    bar: ProgressBar,
}

impl Meter {
    /// For a download of this length.
    pub fn new(length: u64) -> Self {
        Self::on(length, screen::live())
    }

    fn on(length: u64, terminal: bool) -> Self {
        let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(length), target);
        if let Ok(style) = ProgressStyle::with_template(SHOWN) {
            bar.set_style(style);
        }
        Self { bar }
    }

    /// Bytes that were there before this command are no speed.
    pub fn begin(&self, has: u64) {
        self.bar.set_position(has);
        self.bar.reset_eta();
    }

    /// This many bytes are there.
    pub fn at(&self, has: u64) {
        self.bar.set_position(has);
    }

    /// Writes a line above the bar, or without a terminal just a line.
    pub fn note(&self, text: &str) {
        self.bar.suspend(|| screen::note(text));
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_terminal_there_is_no_bar() {
        let meter = Meter::on(100, false);
        assert!(meter.bar.is_hidden());
        meter.begin(10);
        meter.at(40);
        assert_eq!((meter.bar.position(), meter.bar.length()), (40, Some(100)));
        assert!(ProgressStyle::with_template(SHOWN).is_ok());
    }
}
