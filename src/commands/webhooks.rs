//! Where a tenant is told of its events: `webhooks …`.

use serde_json::{Value, json};

use super::{Answer, Caller, CommandError, Commands, OnlyIf, access::did_you_mean, answer, nouns, now};
use crate::{
    domain::{EventKind, TenantName, Verb, Webhook, WebhookDelivery, WebhookId, WebhookMark},
    store::{NewEvent, Stored},
    webhooks::{TestRefusal, new_secret, newest_event, shown_url},
};

/// Beginnings of kinds that one webhook may name, and the longest of them.
const MOST_KINDS: usize = 20;
const LONGEST_KIND: usize = 64;

fn check_kinds(kinds: &[String]) -> Result<(), CommandError> {
    let fits = |c: char| c.is_ascii_lowercase() || c == '.';
    let bad = kinds.iter().find(|kind| kind.is_empty() || kind.len() > LONGEST_KIND || !kind.chars().all(fits));
    if let Some(kind) = bad {
        let shown: String = answer::clean(kind).chars().take(LONGEST_KIND).collect();
        let text = format!("{shown:?} is not the beginning of an event's type, as in build. or deployment.finished");
        return Err(CommandError::Usage(text));
    }
    if kinds.len() > MOST_KINDS {
        return Err(CommandError::Usage(format!("a webhook may name {MOST_KINDS} types; leave --type out for all")));
    }
    Ok(())
}

fn kinds(webhook: &Webhook) -> String {
    if webhook.kinds.is_empty() { "all".to_owned() } else { webhook.kinds.join(" ") }
}

/// How it is, in a few words.
fn state(webhook: &Webhook, mark: Option<&WebhookMark>) -> String {
    let mark = mark.filter(|mark| mark.generation == webhook.generation);
    match (webhook.enabled, &webhook.disabled_reason, mark.and_then(|mark| mark.retry.as_ref())) {
        (false, Some(reason), _) => format!("disabled: {reason}"),
        (false, None, _) => "disabled".to_owned(),
        (true, _, Some(retry)) => {
            let next = answer::age(retry.next_at.duration_since(now()).as_secs());
            format!("failing: {} attempts at event {}, the next in {next}", retry.attempts, retry.event)
        }
        (true, _, None) => "enabled".to_owned(),
    }
}

/// Never the URL's query and never the secret.
fn value(webhook: &Webhook, mark: Option<&WebhookMark>) -> Value {
    let mark = mark.filter(|mark| mark.generation == webhook.generation);
    json!({
        "id": webhook.id, "tenant": webhook.tenant, "url": webhook.target, "types": webhook.kinds,
        "enabled": webhook.enabled, "disabled_reason": webhook.disabled_reason,
        "created_by": webhook.created_by, "created_at": webhook.created_at,
        "retry": mark.and_then(|mark| mark.retry.as_ref()),
        "failing_since": mark.and_then(|mark| mark.failing_since),
        "missed": mark.map_or(0, |mark| mark.missed),
    })
}

/// What somebody has set of a webhook's value, for its tag: how deliveries go changes by itself, and keeps nobody from changing it.
pub(crate) fn settings(value: &Value) -> Value {
    let mut value = value.clone();
    if let Some(parts) = value.as_object_mut() {
        parts.retain(|name, _| !["retry", "failing_since", "missed"].contains(&name.as_str()));
    }
    value
}

fn delivery_value(delivery: &WebhookDelivery) -> Value {
    json!({
        "number": delivery.number, "delivery": delivery.delivery, "event": delivery.event, "type": delivery.kind,
        "attempt": delivery.attempt, "at": delivery.at, "duration_ms": delivery.duration_ms,
        "status": delivery.status, "error": delivery.error, "missed": delivery.missed,
    })
}

fn outcome(delivery: &WebhookDelivery) -> String {
    let status = delivery.status.map_or_else(|| "no answer".to_owned(), |status| status.to_string());
    delivery.error.clone().unwrap_or(status)
}

fn delivery_row(delivery: &WebhookDelivery) -> Vec<String> {
    let event = delivery.event.map_or_else(|| "test".to_owned(), |event| event.to_string());
    let at = delivery.at.strftime("%Y-%m-%d %H:%M:%S").to_string();
    let took = format!("{}ms", delivery.duration_ms);
    vec![at, event, delivery.kind.clone(), delivery.attempt.to_string(), took, outcome(delivery)]
}

impl Commands {
    /// `webhooks …`.
    pub(super) async fn webhooks(
        &self,
        caller: &Caller,
        command: nouns::Webhooks,
        only_if: &OnlyIf,
    ) -> Result<Answer, CommandError> {
        use nouns::Webhooks;
        match command {
            Webhooks::List { tenant } => self.list_webhooks(caller, &tenant).await,
            Webhooks::Add { tenant, url, kinds } => self.add_webhook(caller, &tenant, &url, kinds).await,
            Webhooks::Info { tenant, id } => self.webhook_info(caller, &tenant, &id).await,
            Webhooks::Remove { tenant, id } => self.remove_webhook(caller, &tenant, &id, only_if).await,
            Webhooks::Deliveries { tenant, id } => self.webhook_deliveries(caller, &tenant, &id).await,
            Webhooks::Test { tenant, id } => self.test_webhook(caller, &tenant, &id).await,
            Webhooks::Enable { tenant, id } => self.switch_webhook(caller, &tenant, &id, true, only_if).await,
            Webhooks::Disable { tenant, id } => self.switch_webhook(caller, &tenant, &id, false, only_if).await,
        }
    }

    async fn list_webhooks(&self, caller: &Caller, tenant: &TenantName) -> Result<Answer, CommandError> {
        self.tenant_for(caller, Verb::Read, tenant).await?;
        let (mut rows, mut values) = (Vec::new(), Vec::new());
        for webhook in self.store.list::<Webhook>(&format!("{tenant}/")).await? {
            let mark = self.store.get::<WebhookMark>(&(tenant.clone(), webhook.id.clone())).await?;
            let mark = mark.as_deref();
            rows.push(vec![
                webhook.id.to_string(),
                webhook.target.clone(),
                kinds(&webhook),
                webhook.created_by.to_string(),
                state(&webhook, mark),
            ]);
            values.push(value(&webhook, mark));
        }
        let empty = format!("No webhooks. Add one with `webhooks add {tenant} URL`.");
        Ok(Answer::table(&["id", "url", "types", "by", "state"], rows, values, &empty))
    }

    /// The webhook, if the caller may do `verb` in its tenant.
    async fn webhook_for(
        &self,
        caller: &Caller,
        verb: Verb,
        tenant: &TenantName,
        id: &WebhookId,
    ) -> Result<Stored<Webhook>, CommandError> {
        self.tenant_for(caller, verb, tenant).await?;
        if let Some(webhook) = self.store.get::<Webhook>(&(tenant.clone(), id.clone())).await? {
            return Ok(webhook);
        }
        let known = self.store.list::<Webhook>(&format!("{tenant}/")).await?;
        let hint = did_you_mean(id.as_str(), known.into_iter().map(|webhook| webhook.id.to_string()));
        Err(CommandError::NotFound(format!("{tenant} has no webhook {id}{hint}; see `webhooks list {tenant}`")))
    }

    async fn webhook_mark(&self, webhook: &Webhook) -> Result<Option<WebhookMark>, CommandError> {
        let mark = self.store.get::<WebhookMark>(&(webhook.tenant.clone(), webhook.id.clone())).await?;
        Ok(mark.map(|stored| stored.record))
    }

    async fn webhook_info(&self, caller: &Caller, tenant: &TenantName, id: &WebhookId) -> Result<Answer, CommandError> {
        let webhook = self.webhook_for(caller, Verb::Read, tenant, id).await?;
        let mark = self.webhook_mark(&webhook).await?;
        let text = format!(
            "Webhook {id} of {tenant}\nto:    {}\ntypes: {}\nby:    {}, {:.0}\nstate: {}",
            webhook.target,
            kinds(&webhook),
            webhook.created_by,
            webhook.created_at,
            state(&webhook, mark.as_ref()),
        );
        Ok(Answer::new(text, value(&webhook, mark.as_ref())))
    }

    /// The webhook to be changed, if it is as the caller has seen it.
    async fn webhook_to_change(
        &self,
        caller: &Caller,
        tenant: &TenantName,
        id: &WebhookId,
        only_if: &OnlyIf,
    ) -> Result<Stored<Webhook>, CommandError> {
        let webhook = self.webhook_for(caller, Verb::ManageWebhooks, tenant, id).await?;
        only_if.check(&settings(&value(&webhook, None)))?;
        Ok(webhook)
    }

    async fn webhook_event(&self, caller: &Caller, webhook: &Webhook, what: &str) -> Result<(), CommandError> {
        let text = format!("{what} the webhook {} to {}", webhook.id, webhook.target);
        let event = NewEvent::new(EventKind::WebhookChanged, now(), text).tenant(&webhook.tenant).by(&caller.user);
        self.store.record(event).await?;
        Ok(())
    }

    async fn add_webhook(
        &self,
        caller: &Caller,
        tenant: &TenantName,
        url: &str,
        kinds: Vec<String>,
    ) -> Result<Answer, CommandError> {
        // Whoever is counted against the limit at the same time is one of them: the tenant's record is what they take turns at.
        let stored = self.tenant_for(caller, Verb::ManageWebhooks, tenant).await?;
        let url = self.webhooks.check_url(url).map_err(CommandError::Usage)?;
        check_kinds(&kinds)?;
        let most = self.webhooks.per_tenant();
        if self.store.list::<Webhook>(&format!("{tenant}/")).await?.len() >= most {
            let text = format!("{tenant} has {most} webhooks, as many as a tenant may; `webhooks remove` one first");
            return Err(CommandError::Conflict(text));
        }
        let id = format!("{:08x}", rand::random::<u32>()).parse().map_err(CommandError::Failed)?;
        let webhook = Webhook {
            tenant: tenant.clone(),
            id,
            target: shown_url(&url),
            url: url.into(),
            secret: new_secret(),
            kinds,
            created_by: caller.user.clone(),
            created_at: now(),
            enabled: true,
            disabled_reason: None,
            from: newest_event(&self.store).await?,
            generation: 1,
        };
        let transaction = self.store.transaction().update(&stored, &stored.record);
        transaction.create(&webhook).commit().await?;
        self.webhook_event(caller, &webhook, "added").await?;
        let text = format!(
            "Webhook {id} tells {} of {}.\nSecret (shown this once): {}\nEach request has a Berth-Signature: \
             v1=HMAC-SHA256(secret, Berth-Timestamp + \".\" + body) in hexadecimal.\nTry it: `webhooks test {tenant} {id}`",
            webhook.target,
            if webhook.kinds.is_empty() { "all events".to_owned() } else { webhook.kinds.join(", ") },
            webhook.secret.0,
            id = webhook.id,
        );
        let mut value = value(&webhook, None);
        value["secret"] = json!(webhook.secret);
        Ok(Answer::new(text, value))
    }

    async fn remove_webhook(
        &self,
        caller: &Caller,
        tenant: &TenantName,
        id: &WebhookId,
        only_if: &OnlyIf,
    ) -> Result<Answer, CommandError> {
        let stored = self.webhook_to_change(caller, tenant, id, only_if).await?;
        // Its delivery log goes with it as soon as the service hears of this.
        self.store.transaction().delete(&stored).commit().await?;
        self.webhook_event(caller, &stored, "removed").await?;
        Ok(Answer::new(format!("Webhook {id} to {} is removed", stored.target), json!({"removed": id})))
    }

    async fn webhook_deliveries(
        &self,
        caller: &Caller,
        tenant: &TenantName,
        id: &WebhookId,
    ) -> Result<Answer, CommandError> {
        self.webhook_for(caller, Verb::Read, tenant, id).await?;
        let mut log = self.store.list::<WebhookDelivery>(&format!("{tenant}/{id}/")).await?;
        log.sort_by_key(|delivery| std::cmp::Reverse(delivery.number));
        let (rows, values) = log.iter().map(|delivery| (delivery_row(delivery), delivery_value(delivery))).unzip();
        let empty = format!("Nothing was sent yet. Try it: `webhooks test {tenant} {id}`");
        Ok(Answer::table(&["at", "event", "type", "attempt", "took", "outcome"], rows, values, &empty))
    }

    async fn test_webhook(&self, caller: &Caller, tenant: &TenantName, id: &WebhookId) -> Result<Answer, CommandError> {
        let webhook = self.webhook_for(caller, Verb::ManageWebhooks, tenant, id).await?;
        let tested = self.webhooks.test(tenant, id).await.map_err(|refusal| match refusal {
            TestRefusal::Busy | TestRefusal::NoPlace | TestRefusal::Unknown | TestRefusal::Stopping => {
                CommandError::TryLater(format!("the test was not sent: {refusal}; try again in a minute"))
            }
        })?;
        match &tested.error {
            None => {
                let text = format!("{} answered {} in {} ms", webhook.target, outcome(&tested), tested.duration_ms);
                Ok(Answer::new(text, delivery_value(&tested)))
            }
            Some(error) => {
                Err(CommandError::Failed(format!("the test did not get through to {}: {error}", webhook.target)))
            }
        }
    }

    async fn switch_webhook(
        &self,
        caller: &Caller,
        tenant: &TenantName,
        id: &WebhookId,
        on: bool,
        only_if: &OnlyIf,
    ) -> Result<Answer, CommandError> {
        let stored = self.webhook_to_change(caller, tenant, id, only_if).await?;
        let word = if on { "enabled" } else { "disabled" };
        if stored.enabled == on {
            return Ok(Answer::new(format!("Webhook {id} is {word} already"), value(&stored, None)));
        }
        let mut webhook = Webhook { enabled: on, disabled_reason: None, ..stored.record.clone() };
        if on {
            // It begins anew: what happened meanwhile is not told.
            webhook.from = newest_event(&self.store).await?;
            webhook.generation += 1;
        }
        self.store.transaction().update(&stored, &webhook).commit().await?;
        self.webhook_event(caller, &webhook, word).await?;
        let more = if on { "; it is told of what happens from now on" } else { "" };
        Ok(Answer::new(format!("Webhook {id} is {word}{more}"), value(&webhook, None)))
    }
}
