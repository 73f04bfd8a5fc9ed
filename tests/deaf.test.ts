/** A socket that does not read is closed at the first word to it, and what would have followed is undone. */
import { expect, test } from 'bun:test';
import type { ServerWebSocket } from 'bun';
import { readOptions } from '../src/config.ts';
import { Connection } from '../src/connection.ts';
import { Sockets } from '../src/socket.ts';
import { memoryLog } from './support.ts';

/** A relay without a listener, and sockets that take as many frames as they are told to. */
function relay() {
  let now = 0;
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
      publishText: () => 1,
      subscribe: () => {},
      unsubscribe: () => {},
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

test('a controller that does not hear of its peer is gone, and the target hears nothing of it', () => {
  const { sockets, connect } = relay();
  const target = connect(9);
  target.say({ type: 'listen', otc: '482916' });
  const deaf = connect(0);
  deaf.say({ type: 'connect', otc: '482916' });
  expect(deaf.ws.code).toBe(4004);
  expect(target.heard.map((frame) => (JSON.parse(frame) as { type: string }).type)).toEqual([
    'ack',
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
