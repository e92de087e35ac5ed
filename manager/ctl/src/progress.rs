//! How far a transfer has come: bars on a terminal, lines elsewhere.

use std::collections::HashMap;
use std::io::IsTerminal;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use orlop_proto::containerd::types::transfer::Progress;

/// Shows the objects of a transfer on standard error, one bar or line each.
pub struct Display {
    bars: Option<MultiProgress>,
    objects: HashMap<String, Object>,
}

struct Object {
    event: String,
    bar: Option<ProgressBar>,
}

impl Display {
    /// A display for the terminal if there is one.
    pub fn new() -> Display {
        let bars = std::io::stderr().is_terminal().then(MultiProgress::new);
        Display { bars, objects: HashMap::new() }
    }

    /// Takes in what the server reports about one object.
    pub fn update(&mut self, progress: &Progress) {
        let bars = self.bars.as_ref();
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
                bars.add(bar)
            });
            Object { event: String::new(), bar }
        });
        let changed = object.event != progress.event;
        object.event.clone_from(&progress.event);
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
    }

    /// Leaves the last state on the screen.
    pub fn finish(self) {
        for bar in self.objects.into_values().filter_map(|object| object.bar) {
            bar.abandon();
        }
    }
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
