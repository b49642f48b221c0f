//! An API server that takes what the rules say, in the states in which Firecracker takes it, and starts no machine.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::watch;

use super::rules::{RULES, Rule, When};

#[derive(Debug, Default)]
pub(crate) struct State {
    instance: Instance,
    /// Method, path and body of all that was taken.
    pub(crate) taken: Vec<(String, String, Value)>,
    /// Paths that stand for a part of the machine and were told.
    told: BTreeSet<String>,
    /// Where the guest's vsock is.
    vsock: Option<PathBuf>,
    /// The same, from when the guest runs.
    running: watch::Sender<Option<PathBuf>>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Instance {
    #[default]
    NotStarted,
    Running,
    Paused,
}

pub(crate) struct Server {
    pub(crate) socket: PathBuf,
    pub(crate) state: Arc<Mutex<State>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    pub(crate) fn start(dir: &Path) -> Self {
        Self::at(dir.join("api.sock"))
    }

    pub(crate) fn at(socket: PathBuf) -> Self {
        let listener = UnixListener::bind(&socket).unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let state = Arc::clone(&shared);
                tokio::spawn(async move {
                    let service = service_fn(move |request| answer(Arc::clone(&state), request));
                    // A client that goes away is no failure of the server.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { socket, state, task }
    }

    /// Where the vsock of a guest is that runs by now.
    pub(crate) async fn runs(&self) -> PathBuf {
        let mut running = self.state.lock().unwrap().running.subscribe();
        let vsock = running.wait_for(Option::is_some).await.unwrap();
        vsock.clone().unwrap()
    }

    pub(crate) fn paths(&self) -> Vec<String> {
        self.state.lock().unwrap().taken.iter().map(|(_, path, _)| path.clone()).collect()
    }

    pub(crate) fn body(&self, path: &str) -> Value {
        let state = self.state.lock().unwrap();
        state.taken.iter().rfind(|(_, taken, _)| taken == path).map(|(.., body)| body.clone()).unwrap()
    }
}

async fn answer(
    state: Arc<Mutex<State>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
    let bytes = request.into_body().collect().await.unwrap().to_bytes();
    let respond = |status: u16, body: Value| {
        let body = if body.is_null() { Vec::new() } else { serde_json::to_vec(&body).unwrap() };
        Ok(Response::builder().status(status).body(Full::new(Bytes::from(body))).unwrap())
    };
    let mut state = state.lock().unwrap();
    if (method.as_str(), path.as_str()) == ("GET", "/") {
        let name = match state.instance {
            Instance::NotStarted => "Not started",
            Instance::Running => "Running",
            Instance::Paused => "Paused",
        };
        let info = json!({"app_name": "Firecracker", "id": "test", "state": name, "vmm_version": "1.17.0"});
        return respond(200, info);
    }
    match state.take(&method, &path, &bytes) {
        Ok(()) => respond(204, Value::Null),
        Err(fault) => respond(400, json!({"fault_message": fault})),
    }
}

impl State {
    fn take(&mut self, method: &str, path: &str, bytes: &[u8]) -> Result<(), String> {
        let rule = RULES
            .iter()
            .find(|rule| rule.method.eq_ignore_ascii_case(method) && fits(rule.path, path))
            .ok_or_else(|| format!("Invalid request method and/or path: {method} {path}."))?;
        let body: Value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        rule.body.check(&body)?;
        named(rule, path, &body)?;
        self.in_time(rule)?;
        self.change(rule, &body)?;
        let vsock = body["uds_path"].as_str().or(body["vsock_override"]["uds_path"].as_str());
        self.vsock = vsock.map(PathBuf::from).or(self.vsock.take());
        if self.instance == Instance::Running {
            self.running.send_replace(self.vsock.clone());
        }
        self.told.insert(path.to_owned());
        self.taken.push((method.to_owned(), path.to_owned(), body));
        Ok(())
    }

    fn in_time(&self, rule: &Rule) -> Result<(), String> {
        let started = self.instance != Instance::NotStarted;
        match rule.when {
            When::BeforeStart if started => {
                Err("The requested operation is not supported after starting the microVM.".to_owned())
            }
            When::AfterStart if !started => {
                Err("The requested operation is not supported before starting the microVM.".to_owned())
            }
            _ => Ok(()),
        }
    }

    fn change(&mut self, rule: &Rule, body: &Value) -> Result<(), String> {
        match (rule.path, body["action_type"].as_str().or(body["state"].as_str())) {
            ("/actions", Some("InstanceStart")) if self.instance != Instance::NotStarted => {
                Err("The microVM is already running.".to_owned())
            }
            ("/actions", Some("InstanceStart")) if !self.told.contains("/boot-source") => {
                Err("Cannot start microvm without kernel configuration.".to_owned())
            }
            ("/actions", Some("InstanceStart")) | ("/vm", Some("Resumed")) => {
                self.instance = Instance::Running;
                Ok(())
            }
            ("/actions", _) if self.instance == Instance::NotStarted => {
                Err("The requested operation is not supported before starting the microVM.".to_owned())
            }
            ("/vm", _) => {
                self.instance = Instance::Paused;
                Ok(())
            }
            ("/snapshot/create", _) if self.instance != Instance::Paused => {
                Err("Cannot create a snapshot of a microVM that is not paused.".to_owned())
            }
            ("/snapshot/create", _) => {
                for field in ["snapshot_path", "mem_file_path"] {
                    std::fs::write(body[field].as_str().unwrap(), field)
                        .map_err(|error| error.to_string())?;
                }
                Ok(())
            }
            ("/snapshot/load", _) => {
                if self.told.iter().any(|path| path != "/logger" && path != "/metrics") {
                    return Err(
                        "Loading a microVM snapshot not allowed after configuring boot-specific resources."
                            .to_owned(),
                    );
                }
                if body.get("mem_backend").is_none() {
                    return Err("missing field: either `mem_backend` or `mem_file_path`".to_owned());
                }
                // Where it listens must be free.
                let uds = Path::new(body["vsock_override"]["uds_path"].as_str().unwrap_or("/dev/null/none"));
                if uds.exists() {
                    return Err("Cannot create backend: Address in use (os error 98)".to_owned());
                }
                self.instance = Instance::Running;
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

fn fits(pattern: &str, path: &str) -> bool {
    match pattern.split_once('{') {
        Some((begin, _)) => {
            path.strip_prefix(begin).is_some_and(|name| !name.is_empty() && !name.contains('/'))
        }
        None => pattern == path,
    }
}

/// The name in the path is that in the body.
fn named(rule: &Rule, path: &str, body: &Value) -> Result<(), String> {
    let Some((begin, field)) = rule.path.split_once('{') else { return Ok(()) };
    let field = field.trim_end_matches('}');
    match path.strip_prefix(begin) == body[field].as_str() {
        true => Ok(()),
        false => Err(format!("{} does not match the id in the path: {path}", body[field])),
    }
}
