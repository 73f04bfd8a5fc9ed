/** What `bare.ts` does, written for Node with `ws`: no checks, no limits, a room of two for each code. */
import { createServer } from 'node:http';
import { WebSocketServer } from 'ws';

const ack = JSON.stringify({ type: 'ack', message: 'session_open' });
const peerFound = JSON.stringify({ type: 'peer_found' });

const waiting = new Map();
const http = createServer((_request, response) => response.end('ok'));
const sockets = new WebSocketServer({
  server: http,
  clientTracking: false,
  perMessageDeflate: false,
});

sockets.on('connection', (ws) => {
  let code;
  let peer;
  ws.meet = (other) => (peer = other);
  ws.on('message', (frame) => {
    const text = /** @type {Buffer} */ (frame).toString('utf8');
    const message = JSON.parse(text);
    if (message.type === 'data') {
      peer.send(text);
    } else if (message.type === 'listen') {
      code = message.otc;
      waiting.set(code, ws);
      ws.send(ack);
    } else if (message.type === 'connect') {
      peer = waiting.get(message.otc);
      waiting.delete(message.otc);
      peer.meet(ws);
      ws.send(peerFound);
      peer.send(peerFound);
    }
  });
  ws.on('close', () => {
    if (code !== undefined && waiting.get(code) === ws) waiting.delete(code);
  });
});

http.listen(0, () => console.log(JSON.stringify({ port: http.address().port })));
