/**
 * The two ends of what crosses from one instance to another. A controller (or an announcing target) elsewhere is to the
 * owner a peer like any other (`far`), whose wire is a link; on its own instance its socket is a pipe to the owner, and
 * knows no rules.
 */
import type { Answers } from '../answers.ts';
import { Connection } from '../connection.ts';
import type { Loss, Peer, Post } from './post.ts';
import { type ErrorCode, frames, isReason } from '../wire/frames.ts';
import { DirectWire, nowhere, type Pipe, Remote } from './remote.ts';
import type { Sessions } from '../pairing/sessions.ts';

/** Beats that another instance has for an answer. */
const ANSWER_BEATS = 4;

/** What goes over a link: a frame as it is, anything else as an array. */
type ToEdge = string | ['yes'] | ['no', string] | ['end', number] | ['close', number, string];
type ToOwner =
  | string
  | ['connect', otc: string, client: string]
  | ['init', jti: string, client: string, frame: string]
  | ['slow']
  | ['gone'];
export type Item = ['edge', link: number, what: ToEdge] | ['owner', link: number, what: ToOwner];

/** Whether it is an item as far as handling it needs; what it asks for may still be refused. */
export function isItem(value: unknown): value is Item {
  if (!Array.isArray(value)) return false;
  const [to, link, what] = value as unknown[];
  if ((to !== 'edge' && to !== 'owner') || !Number.isInteger(link)) return false;
  if (!Array.isArray(what)) return typeof what === 'string';
  const isQuestion = what[0] === 'connect' || what[0] === 'init';
  return !isQuestion || what.every((part) => typeof part === 'string');
}

interface Parts {
  answers: Answers;
  sessions: Sessions;
  serial: () => number;
  beats: () => number;
  isUp: () => boolean;
  settle: (connection: Connection) => void;
  received: (far: Connection, frame: string) => void;
  closed: (far: Connection) => void;
  letGo: (far: Connection, why: ErrorCode) => void;
  /** A far controller asks. @returns Why not. */
  join: (far: Connection, otc: string) => string | undefined;
  /** A far target asks. Comes to why not. */
  announce: (far: Connection, jti: string, frame: string, then: (refusal?: string) => void) => void;
}

/** Whether the owner has said yes. */
const isOpen = (pipe: Pipe): boolean =>
  pipe.askedAt === undefined || pipe.connection.remote?.session === pipe;

export class Links {
  readonly #parts: Parts;
  readonly #post: Post;

  constructor(parts: Parts, post: Post) {
    this.#parts = parts;
    this.#post = post;
  }

  /** Sockets of this instance that have something under way at another. */
  get pipes(): number {
    let pipes = 0;
    for (const peer of this.#post.peers.values()) pipes += peer.pipes.size;
    return pipes;
  }

  get fars(): number {
    let fars = 0;
    for (const peer of this.#post.peers.values()) fars += peer.fars.size;
    return fars;
  }

  // At the edge, where the socket is

  /** Asks an owner elsewhere. @returns Why not, where it refuses. */
  async open(
    connection: Connection,
    owner: string,
    question: ['connect', string, string] | ['init', string, string, string],
  ): Promise<string | undefined> {
    const { serial, beats, isUp, settle } = this.#parts;
    if (!isUp()) return 'relay_unavailable';
    const peer = this.#post.peer(owner);
    if (question[0] === 'init' && !this.#post.charge(peer, question[3], connection.client)) {
      return 'relay_unavailable';
    }
    const number = serial();
    const pipe: Pipe = {
      connection,
      peer,
      number,
      jti: question[0] === 'init' ? question[1] : undefined,
      askedAt: beats(),
      sent: 0,
      late: 0,
      isOver: false,
      opened: Promise.withResolvers(),
      over: Promise.withResolvers(),
      send: (frame) => {
        pipe.sent += 1;
        if (!this.#post.charge(peer, frame, connection.client)) return this.#tooSlow(pipe);
        this.#post.send(peer, ['owner', number, frame]);
      },
    };
    peer.pipes.set(number, pipe);
    connection.remote?.pipes.add(pipe);
    settle(connection);
    this.#post.send(peer, ['owner', number, question]);
    return pipe.opened.promise;
  }

  /** Until the owner has heard it, this socket can't know whether it may begin anew. */
  async done(pipe: Pipe): Promise<void> {
    pipe.askedAt = this.#parts.beats();
    pipe.send(frames.done);
    await pipe.over.promise;
  }

  /** A socket is gone: every owner that it had to do with is told. */
  leave({ remote }: Connection): void {
    for (const pipe of remote?.pipes ?? []) {
      this.#post.send(pipe.peer, ['owner', pipe.number, ['gone']]);
      this.#drop(pipe);
    }
  }

  /** What the owner says to a socket of ours. */
  #fromOwner(pipe: Pipe, what: ToEdge): void {
    const { connection } = pipe;
    if (typeof what === 'string') {
      if (connection.ws.sendText(what) === 0) this.#tooSlow(pipe);
      return;
    }
    switch (what[0]) {
      case 'yes':
        pipe.askedAt = undefined;
        if (pipe.jti === undefined && connection.remote) connection.remote.session = pipe;
        return pipe.opened.resolve(undefined);
      case 'no':
        return this.#drop(pipe, isReason(what[1]) ? what[1] : 'relay_unavailable');
      case 'end':
        pipe.late = Number.isInteger(what[1]) ? Math.min(pipe.sent, pipe.sent - what[1]) : 0;
        return this.#drop(pipe);
      case 'close':
        if (connection.remote) connection.remote.isClosed = true;
        connection.ws.close(what[1], what[2]);
    }
  }

  /** A frame could not go on, one way or the other: both sides are closed. */
  #tooSlow(pipe: Pipe): void {
    if (!pipe.isOver) this.#post.send(pipe.peer, ['owner', pipe.number, ['slow']]);
    this.#drop(pipe);
    this.#parts.answers.close(pipe.connection, 'slow_consumer');
  }

  /** Forgets a pipe; its socket may go on without it. */
  #drop(pipe: Pipe, refusal = 'relay_unavailable'): void {
    if (pipe.isOver) return;
    pipe.isOver = true;
    pipe.peer.pipes.delete(pipe.number);
    const { remote } = pipe.connection;
    remote?.pipes.delete(pipe);
    if (remote?.session === pipe) remote.session = undefined;
    this.#parts.settle(pipe.connection);
    pipe.opened.resolve(refusal);
    pipe.over.resolve();
  }

  /** The owner is out of reach. Who still waits for its first answer is told by the question's own way. */
  #break(pipe: Pipe, why: Loss): void {
    const { answers } = this.#parts;
    const { connection, jti } = pipe;
    const wasOpen = isOpen(pipe);
    answers.guard(connection, () => {
      if (jti === undefined) {
        this.#drop(pipe);
        if (wasOpen) answers.refuse(connection, why);
      } else {
        const reason = why === 'peer_disconnected' ? 'watcher_disconnected' : why;
        this.#drop(pipe, reason);
        if (wasOpen) answers.reject(connection, jti, reason);
      }
    });
  }

  /** Gives up waiting where an owner has not answered in time. */
  expire(): void {
    const beats = this.#parts.beats();
    for (const peer of this.#post.peers.values()) {
      for (const pipe of peer.pipes.values()) {
        if (pipe.askedAt === undefined || beats - pipe.askedAt <= ANSWER_BEATS) continue;
        this.#post.send(peer, ['owner', pipe.number, ['gone']]);
        this.#break(pipe, 'relay_unavailable');
      }
    }
  }

  // At the owner's

  /** What a peer's socket sent, or what became of it. */
  #fromEdge(peer: Peer, number: number, what: ToOwner): void {
    const { answers, sessions, received, closed, join, announce } = this.#parts;
    const far = peer.fars.get(number);
    if (typeof what === 'string') {
      if (!far?.remote?.link) return;
      far.remote.link.received += 1;
      return received(far, what);
    }
    switch (what[0]) {
      case 'connect': {
        const [, otc, client] = what;
        if (far) return;
        const controller = this.#far(peer, number, client);
        return answers.guard(controller, () => {
          const refusal = join(controller, otc);
          if (refusal) this.#refuse(controller, refusal);
        });
      }
      case 'init': {
        const [, jti, client, frame] = what;
        if (far) return;
        const target = this.#far(peer, number, client);
        return announce(target, jti, frame, (refusal) => {
          if (refusal) this.#refuse(target, refusal);
          else this.#post.send(peer, ['edge', number, ['yes']]);
        });
      }
      case 'slow': {
        const session = far?.session;
        if (!session) return;
        return answers.guard(far, () => {
          sessions.end(session, 'abandoned');
          sessions.closePair(session, 'slow_consumer');
        });
      }
      case 'gone':
        if (far) closed(far);
    }
  }

  #far(peer: Peer, number: number, client: string): Connection {
    const far = new Connection(client);
    const link = { peer, number, received: 0 };
    const post = (what: ToEdge): void => this.#post.send(peer, ['edge', number, what]);
    far.remote = Object.assign(new Remote(), { link });
    far.ws = new DirectWire(far, {
      ...nowhere,
      // What it hears is what the other side of its session has sent.
      sendText: (frame) => {
        if (!this.#post.charge(peer, frame, far.session?.target.client ?? client)) return 0;
        post(frame);
        return frame.length;
      },
      close: (code = 1000, reason = '') => post(['close', code, reason]),
    });
    peer.fars.set(number, far);
    return far;
  }

  #refuse(far: Connection, refusal: string): void {
    const link = far.remote?.link;
    if (link?.peer.fars.delete(link.number)) {
      this.#post.send(link.peer, ['edge', link.number, ['no', refusal]]);
    }
  }

  /** A far controller is in its session. */
  accept({ remote }: Connection): void {
    if (remote?.link) this.#post.send(remote.link.peer, ['edge', remote.link.number, ['yes']]);
  }

  /** What a far peer was in has ended. */
  end(far: Connection | undefined): void {
    const link = far?.remote?.link;
    if (!link?.peer.fars.delete(link.number)) return;
    this.#post.send(link.peer, ['edge', link.number, ['end', link.received]]);
  }

  /** Tells those elsewhere that their peers here are about to go. */
  farewell(): void {
    for (const peer of this.#post.peers.values()) {
      for (const { session } of peer.fars.values()) {
        if (session) this.#parts.sessions.letGo(session.target, 'peer_disconnected');
      }
    }
  }

  // Both

  deliver(peer: Peer, items: Item[]): void {
    // A pipe's last words may come behind its end.
    const heard = new Map<number, Pipe>();
    const { answers } = this.#parts;
    for (const [to, number, what] of items) {
      if (to === 'owner') this.#fromEdge(peer, number, what);
      else {
        const pipe = peer.pipes.get(number) ?? heard.get(number);
        if (!pipe) continue;
        heard.set(number, pipe);
        answers.guard(pipe.connection, () => this.#fromOwner(pipe, what));
      }
    }
    for (const { connection, late } of heard.values()) {
      answers.guard(connection, () => {
        for (let i = 0; i < late && !connection.remote?.isClosed; i += 1) {
          answers.refuse(connection, 'no_session');
        }
      });
    }
  }

  /** Every link with an instance is over. */
  lose(peer: Peer, why: Loss): void {
    this.#loseFars(peer, why);
    for (const pipe of peer.pipes.values()) this.#break(pipe, why);
  }

  /** Every link with an instance is over, but what it was asked it may yet answer, in its new stream. */
  loseOpen(peer: Peer): void {
    this.#loseFars(peer, 'relay_unavailable');
    for (const pipe of peer.pipes.values())
      if (isOpen(pipe)) this.#break(pipe, 'relay_unavailable');
  }

  #loseFars(peer: Peer, why: ErrorCode): void {
    const { answers, closed, letGo } = this.#parts;
    for (const far of peer.fars.values()) {
      if (far.remote?.queue) closed(far);
      else answers.guard(far, () => letGo(far, why));
    }
  }
}
