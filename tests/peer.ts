/** A peer for tests of the rules: it stores its session and watches, and sends nothing. */
import type { Peer, Session, Watch } from '../src/peer.ts';

export class SilentPeer implements Peer {
  readonly client = 'client';
  readonly isBusy = false;
  idleSince = 0;
  session: Session | undefined;
  watches: Set<Watch> | undefined;
  announced: Set<Watch> | undefined;
  send = (): boolean => true;
  trySend = (): boolean => true;
  publish = (): boolean => true;
  subscribe = (): void => {};
  unsubscribe = (): void => {};
  close = (): void => {};
}
