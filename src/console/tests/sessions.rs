//! Signing in and out.

use axum::{
    body::Body,
    http::{Request, header},
};

use super::{Answer, DEV, Secret, Server, cookie};
use crate::domain::{ApiToken, Timestamp};

const TO_SIGN_IN: &str = "/sign-in?next=%2Fenvs%2Facme%2Fshop%2Fdev";

impl Server {
    /// What who is not signed in is shown.
    async fn outside(&self, path: &str) -> Answer {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    async fn sign_in(&self, token: &str, next: &str) -> Answer {
        self.post(None, "/sign-in", &format!("token={token}&next={next}"), &[]).await
    }

    /// The path of a link that a user has asked for.
    async fn link(&self, who: &str) -> String {
        let made = self.world.run(who, "console --json").await.ok().json();
        let (_, path) = made["url"].as_str().unwrap().split_once("berth.example.com").unwrap();
        path.to_owned()
    }

    /// What the API answers to a session's token.
    async fn of_the_api(&self, session: &Secret) -> u16 {
        let request = Request::get("/v1/whoami").header(header::AUTHORIZATION, session.bearer());
        self.send(request.body(Body::empty()).unwrap()).await.status
    }
}

#[tokio::test]
async fn who_is_not_signed_in_is_sent_to_where_one_does_and_back() {
    let server = Server::new().await;
    server.outside("/").await.leads_to("/sign-in");
    server.outside(DEV).await.leads_to(TO_SIGN_IN);
    server.outside(TO_SIGN_IN).await.is(200).shows("name=\"next\" value=\"/envs/acme/shop/dev\"");
    let token = server.token("vera", "").await;
    let session = server.sign_in(&token, DEV).await.leads_to(DEV).session();
    assert!(!session.bearer().contains(&token), "the token itself is in the cookie");
    server.page(&session, DEV).await.is(200).shows("vera");
    server.sign_in(&token, "//evil.example").await.leads_to("/");
    // What a form asks for is not done after signing in.
    server.post(None, "/do/restart", super::OF_DEV, &[]).await.leads_to("/sign-in");
}

#[tokio::test]
async fn a_wrong_token_signs_nobody_in() {
    let server = Server::new().await;
    let good = server.token("vera", "").await;
    for token in ["", "nonsense", "berth_pat_wrong", &good[..good.len() - 1], "%3Cscript%3Ealert(1)"] {
        let answer = server.sign_in(token, DEV).await.is(401).shows("role=\"alert\"");
        assert!(!answer.headers.contains_key(header::SET_COOKIE) && !answer.text.contains("<script>"), "{answer:?}");
    }
    let made_up = Secret::new("berth_pat_wrong").unwrap();
    server.page(&made_up, DEV).await.leads_to(TO_SIGN_IN);
}

#[tokio::test]
async fn a_link_names_its_user_and_signs_in_once() {
    let server = Server::new().await;
    let link = server.link("vera").await;
    // Looking at it does not use it up, and signs nobody in.
    for _ in 0..2 {
        let looked = server.outside(&link).await.is(200).shows("Sign in as vera");
        assert!(!looked.headers.contains_key(header::SET_COOKIE));
    }
    let cross_site = [("sec-fetch-site", "cross-site")];
    server.post(None, &link, "", &cross_site).await.is(403);
    let session = server.post(None, &link, "", &[]).await.leads_to("/").session();
    server.page(&session, "/account").await.is(200).shows("<h1>vera</h1>");
    let again = server.post(None, &link, "", &[]).await.is(404).shows("this link is not good");
    assert!(!again.headers.contains_key(header::SET_COOKIE));
    server.outside(&link).await.is(404);
    server.outside("/sign-in/nonsense").await.is(404);
}

#[tokio::test]
async fn sessions_end_by_themselves_and_by_signing_out() {
    let server = Server::new().await;
    let (first, second) = (server.session("vera").await, server.session("vera").await);
    server.page(&first, DEV).await.is(200);
    let signed_out = server.post(Some(&first), "/sign-out", &format!("form={}", first.form_word()), &[]).await;
    let signed_out = signed_out.leads_to("/sign-in");
    assert!(signed_out.header(header::SET_COOKIE).starts_with("berth_session=; "), "{signed_out:?}");
    assert!(signed_out.header(header::SET_COOKIE).contains("Max-Age=0"), "{signed_out:?}");
    server.page(&first, DEV).await.leads_to(TO_SIGN_IN);
    assert_eq!((server.of_the_api(&first).await, server.of_the_api(&second).await), (401, 200));

    for token in server.world.store.list::<ApiToken>("").await.unwrap() {
        let expired = ApiToken { expires_at: Timestamp::now(), ..token.record.clone() };
        server.world.store.transaction().update(&token, &expired).commit().await.unwrap();
    }
    server.page(&second, DEV).await.leads_to(TO_SIGN_IN);
    server.act(&second, "restart", super::OF_DEV).await.leads_to("/sign-in");
    // Signing out of what has ended is no fault.
    server.post(Some(&second), "/sign-out", &format!("form={}", second.form_word()), &[]).await.leads_to("/sign-in");
}

#[tokio::test]
async fn cookies_go_to_this_server_alone_and_to_no_script() {
    let server = Server::new().await;
    let token = server.token("vera", "").await;
    let plain = server.sign_in(&token, "/").await.leads_to("/");
    let attributes = plain.header(header::SET_COOKIE).split_once("; ").unwrap().1;
    assert_eq!(attributes, "Path=/; HttpOnly; SameSite=Lax; Max-Age=43200");
    assert!(plain.header(header::SET_COOKIE).starts_with("berth_session="));

    let server = Server::at("https://berth.example.com").await;
    let token = server.token("vera", "").await;
    let secure = server.sign_in(&token, "/").await.leads_to("/");
    let (name, attributes) = secure.header(header::SET_COOKIE).split_once("; ").unwrap();
    assert!(name.starts_with("__Host-berth_session=") && attributes.ends_with("; Secure"), "{secure:?}");
    // The name that a neighbour could set is not looked at.
    let session = secure.session();
    server.page(&session, DEV).await.leads_to(TO_SIGN_IN);
    let named = cookie(&session).replace("berth_session", "__Host-berth_session");
    let request = Request::get(DEV).header(header::COOKIE, named).body(Body::empty()).unwrap();
    server.send(request).await.is(200);
}
