/** PeerJS's own server, its limit on connections raised so that one client can hold them all. */
import { PeerServer } from 'peer';

PeerServer({ port: 0, concurrent_limit: 1_000_000 }, (http) =>
  console.log(JSON.stringify({ port: http.address().port })),
);
