//! The chart on two real nodes, with real Helm and unusual names: install → test → attacks of a tenant → upgrade during ten deletions → drained
//! nodes, tools that declare objects, policies of others → uninstall guard → uninstall → install again, which finishes the pending deletion. The chapters depend on each other and run in this order, by
//! `cargo xtask test`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod archives;
mod attacks;
mod declared;
mod life;
mod nodes;
mod policies;
mod world;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use world::World;

type Chapter = (&'static str, fn(&World) -> Result<()>);

const CHAPTERS: &[Chapter] = &[
    ("install_upgrades_an_older_definition", life::install_upgrades_an_older_definition),
    ("a_second_installation_is_rejected", life::a_second_installation_is_rejected),
    ("a_tenant_with_the_edit_role_is_restricted", attacks::a_tenant_with_the_edit_role_is_restricted),
    ("the_ingest_endpoint_rejects_a_tenants_pod", attacks::the_ingest_endpoint_rejects_a_tenants_pod),
    ("a_tenant_downloads_its_archive", archives::a_tenant_downloads_its_archive),
    ("a_protected_computer_cannot_be_deleted", attacks::a_protected_computer_cannot_be_deleted),
    ("deletions_survive_an_upgrade", life::deletions_survive_an_upgrade),
    ("a_drain_ends_and_the_machines_come_back", nodes::a_drain_ends_and_the_machines_come_back),
    ("computers_of_a_cordoned_node_can_be_deleted", nodes::computers_of_a_cordoned_node_can_be_deleted),
    ("a_service_that_is_created_again_needs_no_restart", declared::a_service_that_is_created_again_needs_no_restart),
    ("helm_waits_for_what_is_declared", declared::helm_waits_for_what_is_declared),
    ("deleting_all_does_not_delete_computers", declared::deleting_all_does_not_delete_computers),
    ("quotas_decide_only_in_their_namespace", policies::quotas_decide_only_in_their_namespace),
    ("a_sidecar_hides_neither_the_user_nor_the_end", policies::a_sidecar_hides_neither_the_user_nor_the_end),
    ("uninstalling_loses_nothing", life::uninstalling_loses_nothing),
];

#[tokio::main]
async fn main() -> ExitCode {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    if let Some(obstacle) = xtask::node::obstacle() {
        for (name, _) in CHAPTERS {
            println!("test {name} ... skipped: this machine cannot run a real node: {obstacle}");
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
    // Helm and kubectl run as blocking child processes.
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
