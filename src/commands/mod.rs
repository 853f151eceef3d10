//! What a user may ask, once: ssh, api and control socket are doors to it. Authorisation lives here.
