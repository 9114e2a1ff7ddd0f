//! `umiak image …`: the images of this node. Works beside a running daemon, which sees every change at once.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

use crate::image::{Error, ImageStore, ImageSummary, ImportOptions, Progress, Reference, Source};

/// Import, list and remove the images of this node.
#[derive(Debug, Args)]
pub struct ImageArgs {
    /// Directory of the server's or agent's data
    #[arg(long, global = true, default_value = "/var/lib/umiak")]
    pub data_dir: PathBuf,
    /// What to do
    #[command(subcommand)]
    pub command: ImageCommand,
}

/// What `umiak image` can do.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Take in archives: OCI image layouts and `docker save` files, plain or packed with gzip or zstd
    Import {
        /// Archive files, directories in OCI image layout, or - for standard input
        #[arg(required = true)]
        archives: Vec<PathBuf>,
        /// Name for an image that its archive does not name
        #[arg(long, value_name = "REFERENCE")]
        name: Option<Reference>,
        /// Pin the images: they are not removed by mistake
        #[arg(long)]
        pin: bool,
    },
    /// List images
    #[command(alias = "list")]
    Ls,
    /// Remove images by name
    #[command(alias = "remove")]
    Rm {
        /// Names
        #[arg(required = true)]
        references: Vec<Reference>,
        /// Even if pinned or used by a container (which goes on running)
        #[arg(long, short)]
        force: bool,
    },
    /// Keep these images: `image rm` refuses them without --force
    Pin {
        /// Names
        #[arg(required = true)]
        references: Vec<Reference>,
    },
    /// Let `image rm` remove these images again
    Unpin {
        /// Names
        #[arg(required = true)]
        references: Vec<Reference>,
    },
    /// Read every byte of images and compare it with what was imported
    Verify {
        /// Names; none means all images
        references: Vec<Reference>,
    },
}

/// Runs the command. What concerns one of several arguments is told on standard error and the others still done.
///
/// # Errors
/// Where the store cannot be opened.
pub fn run(args: &ImageArgs) -> Result<ExitCode, Error> {
    let store = ImageStore::open(&args.data_dir.join("images"))?;
    let results: Vec<Result<(), Error>> = match &args.command {
        ImageCommand::Import { archives, name, pin } => {
            let options = ImportOptions { name: name.clone(), pin: *pin };
            archives.iter().map(|archive| import(&store, archive, &options)).collect()
        }
        ImageCommand::Ls => vec![list(&store)],
        ImageCommand::Rm { references, force } => each(references, "removed", |r| store.remove(r, *force)),
        ImageCommand::Pin { references } => each(references, "pinned", |r| store.pin(r, true)),
        ImageCommand::Unpin { references } => each(references, "unpinned", |r| store.pin(r, false)),
        ImageCommand::Verify { references } if references.is_empty() => {
            each(&all_names(&store)?, "verified", |r| store.verify(r))
        }
        ImageCommand::Verify { references } => each(references, "verified", |r| store.verify(r)),
    };
    let mut code = ExitCode::SUCCESS;
    for error in results.into_iter().filter_map(Result::err) {
        eprintln!("umiak: {error}");
        code = ExitCode::FAILURE;
    }
    Ok(code)
}

fn each(
    references: &[Reference],
    done: &str,
    work: impl Fn(&Reference) -> Result<(), Error>,
) -> Vec<Result<(), Error>> {
    references.iter().map(|r| work(r).map(|()| say(&format!("{done} {r}\n")))).collect()
}

fn import(store: &ImageStore, archive: &Path, options: &ImportOptions) -> Result<(), Error> {
    let bar = Bar::new();
    let mut stdin = io::stdin().lock();
    let source =
        if archive == Path::new("-") { Source::Stream(&mut stdin, "standard input") } else { Source::Path(archive) };
    let names = store.import(source, options, &mut |progress| bar.show(progress));
    bar.clear();
    names?.iter().for_each(|name| say(&format!("imported {name}\n")));
    Ok(())
}

fn list(store: &ImageStore) -> Result<(), Error> {
    say(&table(&store.list()?));
    Ok(())
}

/// One name for each image.
fn all_names(store: &ImageStore) -> Result<Vec<Reference>, Error> {
    let images = store.list()?;
    Ok(images.iter().filter_map(|i| i.repo_tags.first().or(i.repo_digests.first())?.parse().ok()).collect())
}

fn table(images: &[ImageSummary]) -> String {
    let mut rows = vec![["REFERENCE", "IMAGE ID", "SIZE", "CREATED", "PINNED"].map(str::to_owned)];
    for image in images {
        let names = if image.repo_tags.is_empty() { &image.repo_digests } else { &image.repo_tags };
        let id = image.id.strip_prefix("sha256:").unwrap_or(&image.id);
        let names = if names.is_empty() { &["<none>".to_owned()][..] } else { names };
        for name in names {
            rows.push([
                name.clone(),
                id.get(..12).unwrap_or(id).to_owned(),
                size(image.size),
                image.created.get(..10).unwrap_or("-").to_owned(),
                if image.pinned { "yes" } else { "no" }.to_owned(),
            ]);
        }
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: [usize; 5] = std::array::from_fn(width);
    let line = |row: &[String; 5]| {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("{}\n", cells.join("   ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// Decimal units, as other container tools print sizes.
fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes}B"),
        1_000..1_000_000 => format!("{:.1}kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1}MB", bytes as f64 / 1e6),
        _ => format!("{:.2}GB", bytes as f64 / 1e9),
    }
}

/// Prints; a reader that went away (`| head`) is no error.
fn say(text: &str) {
    drop(io::stdout().write_all(text.as_bytes()));
}

/// Shows progress at a terminal and nothing elsewhere.
struct Bar(Option<ProgressBar>);

impl Bar {
    fn new() -> Bar {
        Bar(io::stderr().is_terminal().then(|| ProgressBar::new(0).with_style(style())))
    }

    fn show(&self, progress: &Progress) {
        let Some(bar) = &self.0 else { return };
        bar.set_length(progress.total.unwrap_or(progress.done));
        bar.set_position(progress.done);
        bar.set_message(progress.step.get(..19).unwrap_or(&progress.step).to_owned());
    }

    fn clear(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{msg:19} [{bar:30}] {bytes}/{total_bytes}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        image: ImageArgs,
    }

    #[test]
    fn reads_its_arguments() {
        for (line, fits) in [
            ("x import a.tar b.tar --name app:1 --pin", true),
            ("x import - --data-dir /d", true),
            ("x import", false),
            ("x import a.tar --name Bad", false),
            ("x ls", true),
            ("x rm nginx --force", true),
            ("x rm nginx:", false),
            ("x verify", true),
            ("x", false),
        ] {
            assert_eq!(Cli::try_parse_from(line.split(' ')).is_ok(), fits, "{line}");
        }
    }

    #[test]
    fn prints_one_line_a_name() {
        let image = ImageSummary {
            id: format!("sha256:{}", "ab".repeat(32)),
            repo_tags: vec!["docker.io/library/a:1".to_owned(), "docker.io/library/a:latest".to_owned()],
            repo_digests: Vec::new(),
            size: 39_808_293,
            created: "2026-01-01T00:00:00Z".to_owned(),
            imported: 0,
            pinned: true,
        };
        let expected = "\
REFERENCE                    IMAGE ID       SIZE     CREATED      PINNED
docker.io/library/a:1        abababababab   39.8MB   2026-01-01   yes
docker.io/library/a:latest   abababababab   39.8MB   2026-01-01   yes
";
        assert_eq!(table(&[image]), expected);
        for (bytes, text) in [(0, "0B"), (999, "999B"), (1_000, "1.0kB"), (2_500_000_000, "2.50GB")] {
            assert_eq!(size(bytes), text);
        }
    }
}
