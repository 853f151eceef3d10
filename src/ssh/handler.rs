//! One connection's side of russh: authentication, channels and their requests.

use std::{collections::HashMap, sync::Arc};

use russh::{
    Channel, ChannelId, ChannelOpenFailure, ChannelWriteHalf, Disconnect, Pty as TerminalMode, Sig,
    keys::Algorithm,
    server::{Auth, ChannelOpenHandle, Handler, Msg, PublicKeyOffer, Session as RusshSession, VerifiedPublicKey},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    connection::Connection,
    inlet::{Inlet, InletReader, inlet},
    session::{Session, is_cooked},
};
use crate::{
    commands::{Caller, Control, Pty},
    git::wire,
    keys::fingerprint,
};

/// Sessions that one connection may have open (as OpenSSH's `MaxSessions`).
const MAX_CHANNELS: usize = 10;
/// Controls that may wait for a command.
const WAITING_CONTROLS: usize = 16;
/// Control characters that a terminal driver acts on.
const END_OF_TEXT: u8 = 0x03;
const END_OF_TRANSMISSION: u8 = 0x04;

/// A channel before or while its request runs.
struct OpenChannel {
    /// Taken when the request starts.
    waiting: Option<(ChannelWriteHalf<Msg>, InletReader, mpsc::Receiver<Control>)>,
    input: Inlet,
    controls: mpsc::Sender<Control>,
    gone: CancellationToken,
    pty: Option<Pty>,
    protocol: Option<&'static str>,
    /// We play the terminal driver for input, too.
    cooked: bool,
}

impl Drop for OpenChannel {
    fn drop(&mut self) {
        // A full queue has a hangup or the like in it already; the token says the same.
        let _ = self.controls.try_send(Control::Hangup);
        self.gone.cancel();
    }
}

/// The handler of one connection.
pub struct ConnectionHandler {
    connection: Arc<Connection>,
    /// The fingerprint of the key that the client has proved to have, and whose it was then.
    login: Option<(String, Caller)>,
    channels: HashMap<ChannelId, OpenChannel>,
}

impl Drop for ConnectionHandler {
    fn drop(&mut self) {
        self.connection.gone.cancel();
    }
}

impl ConnectionHandler {
    /// For a connection that has just been accepted.
    pub fn new(connection: Arc<Connection>) -> Self {
        Self { connection, login: None, channels: HashMap::new() }
    }

    async fn owner(&self, fingerprint: &str) -> Option<Caller> {
        match self.connection.backend.authenticate(fingerprint).await {
            Ok(caller) => caller,
            Err(error) => {
                tracing::error!(%error, "a key could not be looked up");
                None
            }
        }
    }

    /// Tells the client why it has to go, and sees to it that it does.
    fn dismiss(&self, reason: Disconnect, why: &str, session: &mut RusshSession) -> Result<(), russh::Error> {
        tracing::info!(peer = %self.connection.peer, "a connection is ended: {why}");
        self.connection.dismissed.cancel();
        session.disconnect(reason, why, "")
    }

    /// Starts the channel's one request, if the key that the client came in with is still good: a connection may be open for days.
    async fn start(
        &mut self,
        id: ChannelId,
        line: Option<Vec<u8>>,
        session: &mut RusshSession,
    ) -> Result<(), russh::Error> {
        let Some((fingerprint, _)) = &self.login else { return session.channel_failure(id) };
        let caller = match self.connection.backend.authenticate(fingerprint).await {
            Ok(Some(caller)) => caller,
            Ok(None) => {
                let why = "the key you came in with has been removed; use another one, or ask your operator";
                return self.dismiss(Disconnect::ByApplication, why, session);
            }
            Err(error) => {
                tracing::error!(%error, "a key could not be looked up");
                return session.channel_failure(id);
            }
        };
        let started = self.channels.get_mut(&id).and_then(|open| open.waiting.take().map(|waiting| (open, waiting)));
        let Some((open, (channel, input, controls))) = started else {
            return session.channel_failure(id);
        };
        session.channel_success(id)?;
        let words = line.as_deref().map(String::from_utf8_lossy).unwrap_or_default();
        let first = words.split_ascii_whitespace().next().map(str::to_owned);
        open.cooked = open.pty.is_some() && is_cooked(&first.into_iter().collect::<Vec<_>>());
        tracing::info!(user = %caller.user, peer = %self.connection.peer, "session: {}", for_log(&words));
        let running = Session {
            connection: self.connection.clone(),
            caller,
            channel,
            gone: open.gone.clone(),
            input,
            controls,
            pty: open.pty.clone(),
            protocol: open.protocol,
        };
        self.connection.tasks.spawn(running.run(line));
        Ok(())
    }

    fn control(&self, id: ChannelId, control: Control) {
        if let Some(open) = self.channels.get(&id) {
            // A command that does not look at its controls misses some.
            let _ = open.controls.try_send(control);
        }
    }
}

/// The part of a request that may be logged: a git session's path, else the first word, since what follows may be a secret
/// (`config set`, `tenants join`).
fn for_log(words: &str) -> String {
    let (first, rest) = words.trim_start().split_once(char::is_whitespace).unwrap_or((words, ""));
    let shown = if first.starts_with("git-") { format!("{first} {rest}") } else { first.to_owned() };
    shown.chars().take(200).flat_map(char::escape_debug).collect()
}

fn characters(count: u32) -> u16 {
    u16::try_from(count.clamp(1, 10_000)).unwrap_or(80)
}

/// Only with SHA-2: `ssh-rsa` signatures are SHA-1.
fn is_acceptable(algorithm: &Algorithm) -> bool {
    !matches!(algorithm, Algorithm::Rsa { hash: None })
}

impl Handler for ConnectionHandler {
    type Error = russh::Error;

    async fn auth_publickey_offered(&mut self, _: &str, offer: PublicKeyOffer<'_>) -> Result<Auth, Self::Error> {
        let known = is_acceptable(offer.algorithm) && self.owner(&fingerprint(offer.public_key)).await.is_some();
        Ok(if known { Auth::Accept } else { Auth::reject() })
    }

    async fn auth_publickey(&mut self, _: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Self::Error> {
        let fingerprint = fingerprint(key.public_key);
        let owner = if is_acceptable(key.algorithm) { self.owner(&fingerprint).await } else { None };
        let Some(caller) = owner else {
            tracing::info!(peer = %self.connection.peer, %fingerprint, "a key was refused");
            return Ok(Auth::reject());
        };
        tracing::debug!(user = %caller.user, peer = %self.connection.peer, %fingerprint, "logged in");
        self.login = Some((fingerprint, caller));
        Ok(Auth::Accept)
    }

    async fn auth_succeeded(&mut self, session: &mut RusshSession) -> Result<(), Self::Error> {
        let Some((_, caller)) = &self.login else { return Ok(()) };
        let Err(reason) = self.connection.authenticated(caller) else { return Ok(()) };
        self.login = None;
        self.dismiss(Disconnect::TooManyConnections, &reason.to_string(), session)
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut RusshSession,
    ) -> Result<(), Self::Error> {
        if self.channels.len() >= MAX_CHANNELS || self.connection.stop.is_cancelled() {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        }
        let id = channel.id();
        // Input comes by `data`: russh's own queue would block the connection (see `gate`).
        let (_, write_half) = channel.split();
        let (input, reader) = inlet(self.connection.gate.clone());
        let (controls, received) = mpsc::channel(WAITING_CONTROLS);
        let open = OpenChannel {
            waiting: Some((write_half, reader, received)),
            input,
            controls,
            gone: self.connection.gone.child_token(),
            pty: None,
            protocol: None,
            cooked: false,
        };
        self.channels.insert(id, open);
        reply.accept().await;
        Ok(())
    }

    async fn data(&mut self, id: ChannelId, data: &[u8], _: &mut RusshSession) -> Result<(), Self::Error> {
        let Some(open) = self.channels.get(&id) else { return Ok(()) };
        if open.cooked {
            if data.contains(&END_OF_TEXT) {
                let _ = open.controls.try_send(Control::Signal("INT".to_owned()));
            }
            if let Some(end) = data.iter().position(|byte| matches!(*byte, END_OF_TEXT | END_OF_TRANSMISSION)) {
                open.input.push(&data[..end]);
                open.input.eof();
                return Ok(());
            }
        }
        open.input.push(data);
        Ok(())
    }

    async fn channel_eof(&mut self, id: ChannelId, _: &mut RusshSession) -> Result<(), Self::Error> {
        if let Some(open) = self.channels.get(&id) {
            open.input.eof();
        }
        Ok(())
    }

    async fn channel_close(&mut self, id: ChannelId, _: &mut RusshSession) -> Result<(), Self::Error> {
        self.channels.remove(&id);
        Ok(())
    }

    async fn pty_request(
        &mut self,
        id: ChannelId,
        term: &str,
        columns: u32,
        rows: u32,
        _: u32,
        _: u32,
        _: &[(TerminalMode, u32)],
        session: &mut RusshSession,
    ) -> Result<(), Self::Error> {
        let Some(open) = self.channels.get_mut(&id).filter(|open| open.waiting.is_some()) else {
            return session.channel_failure(id);
        };
        let term = term.chars().filter(char::is_ascii_graphic).take(64).collect();
        open.pty = Some(Pty { columns: characters(columns), rows: characters(rows), term });
        session.channel_success(id)
    }

    async fn window_change_request(
        &mut self,
        id: ChannelId,
        columns: u32,
        rows: u32,
        _: u32,
        _: u32,
        _: &mut RusshSession,
    ) -> Result<(), Self::Error> {
        self.control(id, Control::Resize { columns: characters(columns), rows: characters(rows) });
        Ok(())
    }

    async fn signal(&mut self, id: ChannelId, signal: Sig, _: &mut RusshSession) -> Result<(), Self::Error> {
        let name = match signal {
            // Only names that RFC 4254, section 6.10, lists.
            Sig::Custom(name) if name == "USR2" => name,
            Sig::Custom(_) => return Ok(()),
            known => format!("{known:?}"),
        };
        self.control(id, Control::Signal(name));
        Ok(())
    }

    async fn env_request(
        &mut self,
        id: ChannelId,
        name: &str,
        value: &str,
        session: &mut RusshSession,
    ) -> Result<(), Self::Error> {
        let protocol = if name == "GIT_PROTOCOL" { wire::protocol(value) } else { None };
        match (protocol, self.channels.get_mut(&id)) {
            (Some(protocol), Some(open)) => {
                open.protocol = Some(protocol);
                session.channel_success(id)
            }
            _ => session.channel_failure(id),
        }
    }

    async fn shell_request(&mut self, id: ChannelId, session: &mut RusshSession) -> Result<(), Self::Error> {
        self.start(id, None, session).await
    }

    async fn exec_request(
        &mut self,
        id: ChannelId,
        line: &[u8],
        session: &mut RusshSession,
    ) -> Result<(), Self::Error> {
        self.start(id, Some(line.to_vec()), session).await
    }

    async fn subsystem_request(
        &mut self,
        id: ChannelId,
        _: &str,
        session: &mut RusshSession,
    ) -> Result<(), Self::Error> {
        session.channel_failure(id)
    }

    async fn x11_request(
        &mut self,
        id: ChannelId,
        _: bool,
        _: &str,
        _: &str,
        _: u32,
        session: &mut RusshSession,
    ) -> Result<(), Self::Error> {
        session.channel_failure(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_not_logged() {
        for (line, logged) in [
            ("config set acme/shop/dev KEY=secret", "config"),
            ("  tenants join code", "tenants"),
            ("whoami", "whoami"),
            ("", ""),
            ("git-receive-pack 'acme/shop/dev'", "git-receive-pack \\'acme/shop/dev\\'"),
            ("x\u{1b}[2J y", "x\\u{1b}[2J"),
        ] {
            assert_eq!(for_log(line), logged, "{line:?}");
        }
    }
}
