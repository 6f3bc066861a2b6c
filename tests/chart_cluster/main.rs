//! The chart on a real node, with real Helm, under names that are not the usual ones: install → test → a tenant's attacks → upgrade while
//! ten deletions are under way → uninstall guard → uninstall → install again, which finishes what was left. One story in this order; run by
//! `cargo xtask test`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod attacks;
mod life;
mod world;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use world::World;

type Chapter = (&'static str, fn(&World) -> Result<()>);

const CHAPTERS: &[Chapter] = &[
    ("an older definition is upgraded, and everything is ready", life::install),
    ("a second installation is refused", life::second),
    ("a tenant with the edit role", attacks::tenant),
    ("a tenant at the ingest endpoint", attacks::ingest),
    ("deletion protection", attacks::protection),
    ("an upgrade while ten deletions are under way", life::upgrade),
    ("uninstalled with a computer left, and installed again", life::uninstall),
];

#[tokio::main]
async fn main() -> ExitCode {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    if let Some(obstacle) = xtask::node::obstacle() {
        for (name, _) in CHAPTERS {
            println!("test {name} ... skipped: no real node can run here: {obstacle}");
        }
        println!("0 passed, 0 failed, {} skipped", CHAPTERS.len());
        return ExitCode::SUCCESS;
    }
    match run().await {
        Ok(()) => {
            println!("{} passed, 0 failed", CHAPTERS.len());
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("FAILED\n    {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<()> {
    let world = World::up().await?;
    // Helm and kubectl are programs that are waited for.
    let world = tokio::task::spawn_blocking(move || {
        for (name, chapter) in CHAPTERS {
            let start = Instant::now();
            chapter(&world).map_err(|error| error.context(*name))?;
            println!("test {name} ... ok ({:.1} s)", start.elapsed().as_secs_f64());
        }
        Ok::<_, anyhow::Error>(world)
    })
    .await??;
    world.cluster.down().await
}
