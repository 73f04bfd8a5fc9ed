/** A peer for tests of pure rules: it holds what the rules give it, and says nothing to anyone. */
import type { Peer, Session, Watch } from '../src/peer.ts';

export class SilentPeer implements Peer {
  readonly client = 'client';
  readonly isLocal = true;
  readonly isBusy = false;
  idleSince = 0;
  session: Session | undefined;
  watches: Set<Watch> | undefined;
  announced: Set<Watch> | undefined;
  send = (): boolean => true;
  trySend = (): boolean => true;
  publish = (): boolean => true;
  noteBacklog = (): void => {};
  subscribe = (): void => {};
  unsubscribe = (): void => {};
  close = (): void => {};
}
