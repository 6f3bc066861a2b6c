//! Tests of the choice of loading, and of its commands against stand-ins: the real tools are not used here.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::*;

fn target(context: &str) -> Target {
    Target { context: context.to_owned(), server: "https://127.0.0.1:1".to_owned(), ..Target::default() }
}

fn choose(target: &Target, wanted: &Wanted) -> Loading {
    Loading::choose(target, wanted).unwrap()
}

fn image() -> Packed {
    Packed { reference: "registry.example.com/team/operator:demo-1".into(), archive: "/images/demo-operator.tar".into() }
}

/// Programs that write their arguments to a file. Returns the `PATH` with them, and the file.
fn stand_ins(folder: &Path, names: &[&str], exit: u8) -> (OsString, PathBuf) {
    let log = folder.join("log");
    for name in names {
        let path = folder.join(name);
        fs::write(&path, format!("#!/bin/sh\necho \"{name} $*\" >> {}\necho refused >&2\nexit {exit}\n", log.display())).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    (format!("{}:/usr/bin:/bin", folder.display()).into(), log)
}

#[test]
fn the_context_chooses_the_tool() {
    let none = Wanted::default();
    assert_eq!(choose(&target("kind-dev"), &none), Loading::Tool(Loader::Kind, "dev".into()));
    assert_eq!(choose(&target("k3d-dev"), &none), Loading::Tool(Loader::K3d, "dev".into()));
    assert_eq!(choose(&target("minikube"), &none), Loading::Tool(Loader::Minikube, "minikube".into()));
    let profile = Target { minikube: true, ..target("kind-of-mine") };
    assert_eq!(choose(&profile, &none), Loading::Tool(Loader::Minikube, "kind-of-mine".into()));
    let own = Target { folder: Some("/cache/dev".into()), ..target("computer-operator") };
    assert_eq!(choose(&own, &none), Loading::Nodes("/cache/dev".into()));
}

#[test]
fn flags_override_the_context() {
    let kind = Wanted { loader: Some(Loader::Kind), ..Wanted::default() };
    let error = Loading::choose(&target("prod"), &kind).unwrap_err().to_string();
    assert!(error.contains("--load-cluster"), "{error}");
    let named = Wanted { cluster: Some("a".into()), ..kind };
    assert_eq!(choose(&target("prod"), &named), Loading::Tool(Loader::Kind, "a".into()));
    let push = Wanted { registry: Some("registry.example.com/team/".into()), ..Wanted::default() };
    assert_eq!(choose(&target("kind-dev"), &push), Loading::Push("registry.example.com/team".into()));
    let bare = Wanted { registry: Some("localhost:5000".into()), ..Wanted::default() };
    assert_eq!(choose(&target("kind-dev"), &bare).prefix(), "localhost:5000/computer-operator");
}

#[test]
fn an_unknown_cluster_needs_a_flag() {
    let error = Loading::choose(&target("gke_team_prod"), &Wanted::default()).unwrap_err().to_string();
    assert!(error.contains("--registry") && error.contains("--load"), "{error}");
    let no_host = Wanted { registry: Some("team".into()), ..Wanted::default() };
    assert!(Loading::choose(&target("kind-dev"), &no_host).is_err());
}

#[test]
fn each_tool_loads_and_removes_the_archive() {
    let folder = tempfile::tempdir().unwrap();
    let (path, log) = stand_ins(folder.path(), &["kind", "k3d", "minikube", "docker"], 0);
    let (stop, nodes) = (Stop::default(), ["dev-control-plane".to_owned(), "dev-worker".to_owned()]);
    for loader in [Loader::Kind, Loader::K3d, Loader::Minikube] {
        let loading = Loading::Tool(loader, "dev".into());
        loading.load(&image(), &stop, &path).unwrap();
        loading.unload(&image(), &nodes, &stop, &path).unwrap();
    }
    let name = image().reference;
    let expected = [
        "kind load image-archive /images/demo-operator.tar --name dev".to_owned(),
        format!("docker exec dev-control-plane crictl rmi {name}"),
        format!("docker exec dev-worker crictl rmi {name}"),
        "k3d image import /images/demo-operator.tar --cluster dev".to_owned(),
        format!("docker exec dev-control-plane crictl rmi {name}"),
        format!("docker exec dev-worker crictl rmi {name}"),
        "minikube image load /images/demo-operator.tar --profile dev".to_owned(),
        format!("minikube image rm {name} --profile dev"),
    ];
    assert_eq!(fs::read_to_string(log).unwrap().lines().collect::<Vec<_>>(), expected);
}

#[test]
fn an_image_is_pushed_with_the_first_program_that_is_there() {
    let name = image().reference;
    for (programs, expected) in [
        (&["crane", "docker"][..], vec![format!("crane push /images/demo-operator.tar {name}")]),
        (&["skopeo", "podman"], vec![format!("skopeo copy docker-archive:/images/demo-operator.tar docker://{name}")]),
        (&["docker"], vec!["docker load --input /images/demo-operator.tar".to_owned(), format!("docker push {name}")]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let (_, log) = stand_ins(folder.path(), programs, 0);
        let path = folder.path().as_os_str().to_owned();
        Loading::Push("registry.example.com/team".into()).load(&image(), &Stop::default(), &path).unwrap();
        assert_eq!(fs::read_to_string(log).unwrap().lines().collect::<Vec<_>>(), expected);
    }
    let nothing = Loading::Push("r.io/t".into()).load(&image(), &Stop::default(), &OsString::from("/nowhere")).unwrap_err().to_string();
    assert!(nothing.contains("crane, skopeo, docker, podman"), "{nothing}");
}

#[test]
fn a_tool_that_fails_or_is_missing_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = stand_ins(folder.path(), &["kind"], 1);
    let failed = Loading::Tool(Loader::Kind, "dev".into()).load(&image(), &Stop::default(), &path).unwrap_err().to_string();
    assert!(failed.contains("kind load image-archive") && failed.contains("refused"), "{failed}");
    let missing = Loading::Tool(Loader::K3d, "dev".into()).load(&image(), &Stop::default(), &path).unwrap_err().to_string();
    assert_eq!(missing, "k3d is not on the PATH");
}
