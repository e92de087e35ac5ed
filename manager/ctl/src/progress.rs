//! How far a transfer has come: bars on a terminal, lines elsewhere.

use std::collections::HashMap;
use std::io::IsTerminal;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use orlop_proto::containerd::types::transfer::Progress;

/// Shows the objects of a transfer on standard error, one bar or line each.
pub struct Display {
    bars: Option<MultiProgress>,
    /// The sum of all objects, below them.
    all: Option<ProgressBar>,
    objects: HashMap<String, Object>,
}

#[derive(Default)]
struct Object {
    event: String,
    bar: Option<ProgressBar>,
    /// Bytes that are here, or there; what is done afterwards with them takes nothing away.
    done: u64,
    /// Bytes in all, where that is known.
    total: u64,
}

impl Display {
    /// A display for the terminal if there is one.
    pub fn new() -> Display {
        let bars = std::io::stderr().is_terminal().then(MultiProgress::new);
        let all = bars.as_ref().map(|bars| {
            let all = ProgressBar::no_length().with_style(style(true)).with_prefix("all");
            bars.add(all)
        });
        Display { bars, all, objects: HashMap::new() }
    }

    /// Takes in what the server reports about one object.
    pub fn update(&mut self, progress: &Progress) {
        let bars = self.bars.as_ref();
        let all = self.all.as_ref();
        if progress.name.is_empty() {
            // Something about the transfer as a whole; it goes above the bars.
            match bars {
                // A terminal that is gone needs no progress.
                Some(bars) => drop(bars.println(&progress.event)),
                None => eprintln!("{}", progress.event),
            }
            return;
        }
        let name = progress.name.clone();
        let object = self.objects.entry(name.clone()).or_insert_with(|| {
            let bar = bars.map(|bars| {
                let bar = ProgressBar::no_length().with_style(style(false)).with_prefix(short(&name));
                match all {
                    Some(all) => bars.insert_before(all, bar),
                    None => bars.add(bar),
                }
            });
            Object { bar, ..Object::default() }
        });
        let changed = object.event != progress.event;
        object.event.clone_from(&progress.event);
        let bytes = |number: i64| u64::try_from(number).unwrap_or(0);
        object.total = object.total.max(bytes(progress.total));
        object.done = object.done.max(bytes(progress.progress)).min(object.total);
        match &object.bar {
            Some(bar) => {
                let total = u64::try_from(progress.total).unwrap_or(0);
                if total > 0 && bar.length() != Some(total) {
                    bar.set_length(total);
                    bar.set_style(style(true));
                }
                bar.set_position(u64::try_from(progress.progress).unwrap_or(0));
                bar.set_message(progress.event.clone());
            }
            None if changed => eprintln!("{}: {}", name, progress.event),
            None => {}
        }
        if let Some(all) = &self.all {
            let (done, total, left) = overall(self.objects.values());
            all.set_length(total);
            all.set_position(done);
            all.set_message(format!("{left} to go"));
        }
    }

    /// Leaves the last state on the screen.
    pub fn finish(self) {
        for bar in self.objects.into_values().filter_map(|object| object.bar).chain(self.all) {
            bar.abandon();
        }
    }
}

/// Bytes that are done, bytes in all, and how many objects are not complete.
fn overall<'a>(objects: impl Iterator<Item = &'a Object>) -> (u64, u64, usize) {
    objects.fold((0, 0, 0), |(done, total, left), object| {
        let is_left = object.done < object.total;
        (done + object.done, total + object.total, left + usize::from(is_left))
    })
}

/// A name's last part, with a digest cut to the length people compare.
fn short(name: &str) -> String {
    match name.split_once("sha256:") {
        Some((before, digest)) if digest.len() > 12 => format!("{before}{}", &digest[..12]),
        _ => name.to_owned(),
    }
}

fn style(sized: bool) -> ProgressStyle {
    let template = if sized {
        "{prefix:40!} {msg:12!} {bar:30} {binary_bytes:>11} / {binary_total_bytes:11} {eta:>4} left"
    } else {
        "{prefix:40!} {msg}"
    };
    // A constant template is either always right or never.
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_says_what_remains() {
        let mut display = Display { bars: None, all: None, objects: HashMap::new() };
        let mut tell = |name: &str, event: &str, progress, total| {
            let (name, event) = (name.to_owned(), event.to_owned());
            display.update(&Progress { name, event, progress, total, ..Progress::default() });
            overall(display.objects.values())
        };
        assert_eq!(tell("a", "downloading", 0, 100), (0, 100, 1));
        assert_eq!(tell("b", "downloading", 30, 50), (30, 150, 2));
        assert_eq!(tell("a", "complete", 100, 100), (130, 150, 1));
        // Unpacking is told from its start, and takes no bytes back.
        assert_eq!(tell("a", "extracting", 0, 100), (130, 150, 1));
        assert_eq!(tell("c", "resolving", 0, 0), (130, 150, 1));
    }

    #[test]
    fn digests_are_cut() {
        assert_eq!(short("layer-sha256:0123456789abcdef"), "layer-0123456789ab");
        assert_eq!(short("docker.io/library/busybox"), "docker.io/library/busybox");
    }

    #[test]
    fn the_templates_are_valid() {
        for sized in [true, false] {
            let bar = ProgressBar::hidden().with_style(style(sized));
            bar.set_message("x");
        }
        assert!(ProgressStyle::with_template("{prefix:40!} {msg:12!} {bar:30} {binary_bytes:>11}").is_ok());
    }
}
