/** A socket that does not read is closed with the first frame to it, and whoever it was with is told. */
import { expect, test } from 'bun:test';
import type { ServerWebSocket } from 'bun';
import { readOptions } from '../src/config.ts';
import { Connection } from '../src/connection.ts';
import { Sockets } from '../src/socket.ts';
import { memoryLog } from './support.ts';

/** A relay without a listener, and sockets that take as many frames as they are told to. */
function relay() {
  let now = 0;
  const topics = new Map<string, Set<{ sendText: (frame: string) => number }>>();
  const sockets = new Sockets(readOptions({}), memoryLog(), () => now);
  const { handlers } = sockets;
  const connect = (takes: number) => {
    const heard: string[] = [];
    const ws = {
      data: new Connection('client'),
      code: undefined as number | undefined,
      sendText(frame: string) {
        if (heard.length >= takes) return 0;
        return heard.push(frame);
      },
      publishText(topic: string, frame: string) {
        let sent = 0;
        for (const other of topics.get(topic) ?? [])
          if (other !== ws) sent += other.sendText(frame);
        return sent;
      },
      subscribe(topic: string) {
        topics.set(topic, (topics.get(topic) ?? new Set()).add(ws));
      },
      unsubscribe(topic: string) {
        topics.get(topic)?.delete(ws);
      },
      close(code: number) {
        ws.code = code;
        void handlers.close?.(ws as unknown as ServerWebSocket<Connection>, code, '');
      },
    };
    const socket = ws as unknown as ServerWebSocket<Connection>;
    void handlers.open?.(socket);
    const say = (frame: object): void => void handlers.message?.(socket, JSON.stringify(frame));
    return { ws, heard, say };
  };
  const pass = (milliseconds: number): void => {
    now += milliseconds;
  };
  return { sockets, connect, pass };
}

test('a controller that does not read is closed, and the target hears that it came and left', () => {
  const { sockets, connect } = relay();
  const target = connect(9);
  target.say({ type: 'listen', otc: '482916' });
  const deaf = connect(0);
  deaf.say({ type: 'connect', otc: '482916' });
  expect(deaf.ws.code).toBe(4004);
  expect(target.heard.map((frame) => JSON.parse(frame) as object)).toEqual([
    { type: 'ack', message: 'session_open' },
    { type: 'peer_found' },
    { type: 'error', code: 'peer_disconnected' },
  ]);
  expect(sockets.books).toMatchObject({ connections: 1, sessions: 0 });
});

test('a target that does not read is closed, and the controller is told so and nothing else', () => {
  const { sockets, connect } = relay();
  const deaf = connect(1);
  deaf.say({ type: 'listen', otc: '482916' });
  const controller = connect(9);
  controller.say({ type: 'connect', otc: '482916' });
  expect(deaf.ws.code).toBe(4004);
  expect(controller.heard.map((frame) => JSON.parse(frame) as object)).toEqual([
    { type: 'error', code: 'peer_disconnected' },
  ]);
  expect(sockets.books).toMatchObject({ connections: 1, sessions: 0 });
});

test('a watcher that does not hear of its end does not begin anew', () => {
  const { sockets, connect, pass } = relay();
  const deaf = connect(1);
  deaf.say({ type: 'bootstrap_watch', jti: 'bt_1' });
  pass(5 * 60_000);
  deaf.say({ type: 'bootstrap_watch', jti: 'bt_1' });
  expect(deaf.ws.code).toBe(4004);
  expect(sockets.books).toMatchObject({ connections: 0, watches: 0 });
});
