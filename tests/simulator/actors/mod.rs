//! The other actors of a cluster: scheduler, kubelet, the volume controllers, the namespace controller, the garbage collector, and the
//! archive pods' program.

pub mod archive;
mod garbage;
pub mod kubelet;
mod namespaces;
pub mod volumes;

use std::time::Duration;

use crate::world::World;

/// Runs them until the simulation ends. They react within half a second, and check once per second while a container runs.
pub async fn run(world: World) {
    let mut changed = world.changes();
    loop {
        let busy = world.with(|s| s.kubelet.busy() || s.all("volumeattachments").next().is_some());
        let resync = world.with(|s| s.binder.due_in());
        let _ = tokio::time::timeout(Duration::from_secs(if busy { 1 } else { 30 }).min(resync), changed.changed()).await;
        let pause = 5 + world.random(200);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        let mut started = Vec::new();
        for _ in 0..20 {
            let before = world.with(|s| s.rv());
            world.with(|s| {
                volumes::step(s);
                started.extend(kubelet::step(s));
                namespaces::step(s);
                garbage::step(s);
            });
            if world.with(|s| s.rv()) == before {
                break;
            }
        }
        for pod in started {
            tokio::spawn(archive::run(world.clone(), pod));
        }
        changed.skip();
        world.notify();
        changed.skip();
    }
}
