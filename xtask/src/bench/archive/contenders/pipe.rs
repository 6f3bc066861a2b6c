//! The least that does the work: `tar | zstd` with the level of an archive, put to the server in objects of 64 MB while it is packed, then got back in
//! order. The digest of what was sent must be that of what was got. Nothing is decompressed, and no file is compared.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::super::server::{BUCKET, KEY, SECRET};
use super::super::usage::{Group, Usage};
use super::{Place, Run};
use crate::bench::archive::home::Home;

/// The program that computes the digest, and its arguments.
type Digest = (&'static str, &'static [&'static str]);

/// Packs, puts, gets and compares.
pub fn run(place: &Place<'_>, home: &Home, digest: Digest) -> Result<Run> {
    let began = Instant::now();
    let (sent, mut used) = put(place, &home.path, digest)?;
    let (got, more) = get(place, digest)?;
    let wall = began.elapsed();
    ensure!(sent == got, "the digest of what was sent is {sent}, of what was got {got}");
    used.extend(more);
    Ok(Run { wall, used })
}

/// What curl needs for the server. The digest of a body is not signed: the server would compute it once more.
fn curl() -> String {
    format!("-sSf --aws-sigv4 aws:amz:us-east-1:s3 --user {KEY}:{SECRET} -H x-amz-content-sha256:UNSIGNED-PAYLOAD")
}

fn output(child: &mut Child) -> Result<Stdio> {
    Ok(child.stdout.take().context("the output of a program")?.into())
}

fn put(place: &Place<'_>, home: &Path, (program, arguments): Digest) -> Result<(String, Vec<Usage>)> {
    let (fifo, sum) = (place.scratch.join("fifo"), place.scratch.join("sent"));
    mkfifo(&fifo, Mode::S_IRWXU)?;
    let mut group = Group::new(place.scratch);
    let mut tar = Command::new("tar");
    tar.args(["--create", "--file=-", "--directory"]).arg(home).arg(".");
    let packed = output(group.start("tar", tar.stdin(Stdio::null()).stdout(Stdio::piped()))?)?;
    let compressed = output(group.start("zstd", Command::new("zstd").args(["-q", "-3", "-c"]).stdin(packed).stdout(Stdio::piped()))?)?;
    let digest = fs::File::create(&sum)?;
    group.start(program, Command::new(program).args(arguments).arg(&fifo).stdin(Stdio::null()).stdout(digest))?;
    let copied = output(group.start("tee", Command::new("tee").arg(&fifo).stdin(compressed).stdout(Stdio::piped()))?)?;
    let url = format!("http://{}/{BUCKET}", place.server.address);
    let filter = format!("curl {} -X PUT --data-binary @- {url}/$FILE", curl());
    let mut split = Command::new("split");
    split.args(["--bytes=64MB", "--suffix-length=4", &format!("--filter={filter}"), "-", "part-"]).env("SHELL", "/bin/sh");
    group.start("split, curl", split.stdin(copied).stdout(Stdio::null()))?;
    let used = group.finish()?;
    Ok((digest_in(&fs::read_to_string(sum)?)?, used))
}

fn get(place: &Place<'_>, (program, arguments): Digest) -> Result<(String, Vec<Usage>)> {
    let sum = place.scratch.join("got");
    let urls = place.server.objects()?.into_iter().map(|name| format!("http://{}/{BUCKET}/{name}", place.server.address));
    let mut group = Group::new(place.scratch);
    let got =
        output(group.start("curl", Command::new("curl").args(curl().split(' ')).args(urls).stdin(Stdio::null()).stdout(Stdio::piped()))?)?;
    group.start(program, Command::new(program).args(arguments).stdin(got).stdout(fs::File::create(&sum)?))?;
    let used = group.finish()?;
    Ok((digest_in(&fs::read_to_string(sum)?)?, used))
}

/// The digest at the beginning of what the program has printed.
fn digest_in(text: &str) -> Result<String> {
    text.split_whitespace().next().map(str::to_owned).context("no digest was printed")
}
