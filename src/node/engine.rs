//! The seam between pod workers and the rooms below: what a worker needs of runtime, images and network, and nothing
//! more, so that workers can be tested without a kernel.

use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::watch;

use super::error::{Error, Result};
use crate::image::{self, Image, ImageStore, Reference};
use crate::network::{Netns, Network};
use crate::runtime::{self, Capture, ContainerConfig, ContainerId, ExecOutput, Runtime, SandboxConfig, SandboxState};

/// Makes sandboxes and finds images.
pub(super) trait Engine: Clone + Send + Sync + 'static {
    /// A pod's sandbox.
    type Sandbox: Sandbox;

    /// Makes a pod's namespaces and its shim.
    fn create(&self, config: &SandboxConfig) -> impl Future<Output = Result<Self::Sandbox>> + Send;

    /// Removes whatever a pod's dead shim left. Idempotent.
    fn cleanup(&self, uid: &str) -> impl Future<Output = Result<()>> + Send;

    /// Gives the pod its network and returns its addresses. Idempotent.
    fn attach(&self, sandbox: &Self::Sandbox) -> impl Future<Output = Result<Vec<IpAddr>>> + Send;

    /// Takes the pod's network away. Idempotent.
    fn detach(&self, uid: &str) -> impl Future<Output = Result<()>> + Send;

    /// A present image.
    fn image(&self, reference: &Reference) -> impl Future<Output = Result<Image, image::Error>> + Send;
}

/// A pod's sandbox. Clones are the same sandbox.
pub(super) trait Sandbox: Clone + Send + Sync + 'static {
    /// The pod's UID.
    fn uid(&self) -> &str;

    /// The state of all containers.
    fn state(&self) -> watch::Receiver<SandboxState>;

    /// Prepares a container and runs its command.
    fn run(&self, config: &ContainerConfig) -> impl Future<Output = runtime::Result<()>> + Send;

    /// Sends a signal to a container.
    fn signal(&self, id: &ContainerId, signal: i32) -> impl Future<Output = runtime::Result<()>> + Send;

    /// Runs a command in a container, for a probe or a hook.
    fn exec(
        &self,
        id: &ContainerId,
        args: &[String],
        capture: Capture,
    ) -> impl Future<Output = runtime::Result<ExecOutput>> + Send;

    /// Keeps a few words about a container for the next daemon.
    fn note(&self, id: &ContainerId, text: &str) -> impl Future<Output = runtime::Result<()>> + Send;

    /// Removes what an ended container left.
    fn remove(&self, id: &ContainerId) -> impl Future<Output = runtime::Result<()>> + Send;

    /// Kills everything and removes the sandbox.
    fn destroy(&self) -> impl Future<Output = runtime::Result<()>> + Send;
}

/// The real one.
#[derive(Clone)]
pub(super) struct Real {
    /// Sandboxes and containers.
    pub(super) runtime: Runtime,
    /// Images.
    pub(super) images: Arc<ImageStore>,
    /// The pod network.
    pub(super) network: Arc<Network>,
}

impl Engine for Real {
    type Sandbox = runtime::Sandbox;

    async fn create(&self, config: &SandboxConfig) -> Result<runtime::Sandbox> {
        match self.runtime.create_sandbox(config).await {
            // The worker, the only one to make this pod's sandbox, has none: this is left of a cleanup that failed.
            Err(runtime::Error::SandboxExists(uid)) => {
                self.runtime.cleanup(&uid).await?;
                Ok(self.runtime.create_sandbox(config).await?)
            }
            result => Ok(result?),
        }
    }

    async fn cleanup(&self, uid: &str) -> Result<()> {
        Ok(self.runtime.cleanup(uid).await?)
    }

    async fn attach(&self, sandbox: &runtime::Sandbox) -> Result<Vec<IpAddr>> {
        let namespace = sandbox.netns();
        let address = self.network.attach(sandbox.uid(), Netns::Path(&namespace)).await?;
        Ok(vec![address.into()])
    }

    async fn detach(&self, uid: &str) -> Result<()> {
        Ok(self.network.detach(uid).await?)
    }

    async fn image(&self, reference: &Reference) -> Result<Image, image::Error> {
        let (images, wanted) = (self.images.clone(), reference.clone());
        match tokio::task::spawn_blocking(move || images.get(&wanted)).await {
            Ok(found) => found,
            Err(_) => Err(image::Error::NotPresent(reference.clone())),
        }
    }
}

impl Sandbox for runtime::Sandbox {
    fn uid(&self) -> &str {
        self.uid()
    }

    fn state(&self) -> watch::Receiver<SandboxState> {
        self.state()
    }

    async fn run(&self, config: &ContainerConfig) -> runtime::Result<()> {
        let id = config.id();
        match self.create_container(config).await {
            // An earlier daemon died over it: it may be half made.
            Err(runtime::Error::WrongState { .. }) => {
                self.remove_container(&id).await?;
                self.create_container(config).await?;
            }
            result => result?,
        }
        self.start(&id).await
    }

    async fn signal(&self, id: &ContainerId, signal: i32) -> runtime::Result<()> {
        self.signal(id, signal).await
    }

    async fn exec(&self, id: &ContainerId, args: &[String], capture: Capture) -> runtime::Result<ExecOutput> {
        self.exec_captured(id, args, capture).await
    }

    async fn note(&self, id: &ContainerId, text: &str) -> runtime::Result<()> {
        self.note(id, text).await
    }

    async fn remove(&self, id: &ContainerId) -> runtime::Result<()> {
        self.remove_container(id).await
    }

    async fn destroy(&self) -> runtime::Result<()> {
        self.destroy().await
    }
}

/// Runs blocking file work on a helper thread.
pub(super) async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::Interrupted(what))?
}
