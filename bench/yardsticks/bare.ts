/**
 * The limit that the relay is measured against: the least that Bun can do and still bring two sockets together by a
 * code. It checks nothing, limits nothing, ends nothing and tells nobody who left.
 */
interface Socket {
  code: string;
  client: string;
}

/** Whether it reads whom a proxy names as the client, as a relay behind a proxy has to. */
const readsHeader = process.env['AMESH_TRUST_PROXY'] === '1';

const ack = JSON.stringify({ type: 'ack', message: 'session_open' });
const peerFound = JSON.stringify({ type: 'peer_found' });

const server = Bun.serve<Socket>({
  port: 0,
  routes: {
    '/ws': (request: Request, server: Bun.Server<Socket>) => {
      const client = readsHeader ? (request.headers.get('x-forwarded-for') ?? '') : '';
      server.upgrade(request, { data: { code: '', client } });
    },
    '/health': () => new Response('ok'),
  },
  websocket: {
    message(ws, frame) {
      const message = JSON.parse(frame as string);
      if (message.type === 'data') {
        ws.publishText(ws.data.code, frame as string);
      } else if (message.type === 'listen') {
        ws.data.code = message.otc;
        ws.subscribe(message.otc);
        ws.sendText(ack);
      } else if (message.type === 'connect') {
        ws.data.code = message.otc;
        ws.subscribe(message.otc);
        server.publish(message.otc, peerFound);
      }
    },
  },
});

console.log(JSON.stringify({ port: server.port }));
