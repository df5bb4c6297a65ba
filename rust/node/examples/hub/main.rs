//! The cost of a call where one process is connected to many: `hub PEERS CALLS`.
//!
//! The hub is a real core with a real socket to each peer. The peers are simulated, all by one thread: each has proved
//! that it knows the cookie, and answers calls with what they carry. That thread is in a process of its own, this
//! program once more, so that each of the two needs only one descriptor for each peer. No Python takes part. The hub's
//! id is not 1, since process 1 would tell each peer of every other one before anything can be measured.
//!
//! Prints one JSON object.

mod peers;

use std::error::Error;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pydist_node::waiter::{Queue, Wake};
use pydist_node::{Config, Node, Payload};
use pydist_proto::handshake::{Cookie, Versions};
use pydist_proto::ids::ProcId;
use pydist_proto::message::{Member, Status};
use pydist_proto::topology::Topology;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const HUB: ProcId = 2;
/// The first id of a peer.
const FIRST: ProcId = 3;
const COOKIE: [u8; 32] = [9; 32];
const CLUSTER: [u8; 16] = [7; 16];
const INST: [u8; 16] = [HUB as u8; 16];
/// Calls that are under way at once.
const WINDOW: u64 = 64;
/// Descriptors beside those of the connections.
const OTHER_DESCRIPTORS: u64 = 64;
const PATIENCE: Duration = Duration::from_secs(60);

type Failure = Box<dyn Error + Send + Sync>;

fn versions() -> Versions {
    Versions {
        python: (3, 11, 0),
        package: "0".to_owned(),
    }
}

fn hub(address: &str) -> Result<Arc<Node>, Failure> {
    let node = Node::start(Config {
        me: Member {
            pid: HUB,
            address: address.to_owned(),
            inst: INST,
            ..Member::default()
        },
        cookie: Cookie::new(&COOKIE)?,
        cluster: CLUSTER,
        versions: versions(),
        allow_python_mismatch: false,
        topology: Topology::default(),
        message_max: 1 << 20,
        shared_max: 0,
        transport_inst: [0; 16],
    })?;
    node.listen(address)?;
    Ok(node)
}

/// Allows a descriptor for each peer.
fn allow_descriptors(peers: u64) -> Result<(), Failure> {
    let wanted = peers + OTHER_DESCRIPTORS;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    let maximum = limit.maximum.map(|maximum| maximum.max(wanted));
    let raised = Rlimit {
        current: Some(wanted),
        maximum,
    };
    setrlimit(Resource::Nofile, raised)
        .map_err(|error| format!("{wanted} descriptors are needed, but may not be had: {error}").into())
}

/// Makes calls to all peers in an order without a pattern, `WINDOW` of them at once; returns the time.
fn call_all(node: &Node, peers: u64, calls: u64) -> Result<Duration, Failure> {
    let queue = Queue::new(false)?;
    let body = [0u8; 64];
    let payload = Payload {
        segments: &[&body],
        refs: &[],
        kept: None,
        signalled: Some(&|| false),
    };
    let begin = Instant::now();
    let (mut sent, mut answered) = (0, 0);
    while answered < calls {
        while sent < calls && sent - answered < WINDOW {
            let peer = FIRST + (sent.wrapping_mul(0x9E37_79B9_7F4A_7C15) % peers) as ProcId;
            node.call_fetch(peer, payload, Wake::Queue(queue.clone(), sent))
                .map_err(|failed| format!("a call to process {peer}: {failed:?}"))?;
            sent += 1;
        }
        let outcomes = queue
            .wait(node, Some(Instant::now() + PATIENCE))
            .map_err(|end| format!("no answer: {end:?}"))?;
        for (_, outcome) in outcomes {
            if outcome.status != Status::Value {
                return Err(format!("process {} has answered {:?}", outcome.pid, outcome.status).into());
            }
            answered += 1;
        }
    }
    Ok(begin.elapsed())
}

/// Starts the process of the peers, and waits until all are connected; returns the time that this took.
fn start_peers(socket: &Path, peers: u64) -> Result<(Child, Duration), Failure> {
    let begin = Instant::now();
    let mut child = Command::new(std::env::current_exe()?)
        .arg("peers")
        .arg(socket)
        .arg(peers.to_string())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    if let Some(output) = child.stdout.take() {
        BufReader::new(output).read_line(&mut line)?;
    }
    if line.is_empty() {
        return Err(format!("the peers have failed: {}", child.wait()?).into());
    }
    Ok((child, begin.elapsed()))
}

/// Waits until the hub has taken up all peers: the last word of a handshake is theirs.
fn await_members(node: &Node, peers: u64) -> Result<(), Failure> {
    let until = Instant::now() + PATIENCE;
    while (node.member_ids().len() as u64) < peers + 1 {
        if Instant::now() > until {
            return Err("not all peers have joined".into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Simulates peers until the hub has closed all connections.
fn be_peers(socket: &Path, peers: u64) -> Result<(), Failure> {
    allow_descriptors(peers)?;
    let ids = FIRST..FIRST + ProcId::try_from(peers)?;
    let connected = ids
        .map(|pid| peers::connect(socket, pid))
        .collect::<Result<Vec<_>, _>>()?;
    println!("connected");
    peers::serve(connected)
}

fn run(folder: &Path, peers: u64, calls: u64) -> Result<(), Failure> {
    allow_descriptors(peers)?;
    let socket = folder.join("hub");
    let node = hub(&format!("unix:{}", socket.display()))?;
    let (mut child, connecting) = start_peers(&socket, peers)?;
    await_members(&node, peers)?;
    // Every connection is used before anything is measured.
    call_all(&node, peers, 2 * peers)?;
    let took = call_all(&node, peers, calls)?;
    println!(
        r#"{{"peers": {peers}, "calls": {calls}, "seconds_per_message": {:e}, "seconds_per_connection": {:e}}}"#,
        took.as_secs_f64() / calls as f64 / 2.0,
        connecting.as_secs_f64() / peers as f64,
    );
    node.close();
    drop(node);
    let status = child.wait()?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("the peers have failed: {status}").into())
    }
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (peers, calls) = match arguments[..] {
        ["peers", socket, peers] => return be_peers(Path::new(socket), peers.parse()?),
        [peers, calls] => (peers.parse()?, calls.parse()?),
        _ => return Err("usage: hub PEERS CALLS".into()),
    };
    if peers == 0 || calls == 0 {
        return Err("there must be a peer and a call".into());
    }
    let folder = std::env::temp_dir().join(format!("pydist-hub-{}", std::process::id()));
    std::fs::create_dir(&folder)?;
    let done = run(&folder, peers, calls);
    std::fs::remove_dir_all(&folder)?;
    done
}
