/** Where Redis is. Apart from what talks to it, which is loaded only where there is one. */

/** Redis could not be reached, or is not what the relay needs. */
export class RedisError extends Error {
  override name = 'RedisError';
  readonly code = 'ERR_RELAY_REDIS';
}

/** A Redis URL that shows its user and password to nobody who only prints it. */
export class RedisUrl {
  readonly #url: URL;

  private constructor(url: URL) {
    this.#url = url;
  }

  /** @returns undefined where it is no Redis URL. */
  static parse(text: string): RedisUrl | undefined {
    const url = URL.canParse(text) ? new URL(text) : undefined;
    const isRedis =
      url &&
      /^rediss?:$/.test(url.protocol) &&
      url.hostname !== '' &&
      /^(?:\/\d{0,4})?$/.test(url.pathname) &&
      url.search + url.hash === '';
    if (!isRedis) return undefined;
    try {
      decodeURIComponent(url.username + url.password);
    } catch {
      return undefined;
    }
    return new RedisUrl(url);
  }

  get host(): string {
    return this.#url.hostname.replaceAll(/^\[|\]$/g, '');
  }

  get port(): number {
    return Number(this.#url.port || 6379);
  }

  get database(): number {
    return Number(this.#url.pathname.slice(1));
  }

  get isTls(): boolean {
    return this.#url.protocol === 'rediss:';
  }

  get username(): string {
    return decodeURIComponent(this.#url.username);
  }

  get password(): string {
    return decodeURIComponent(this.#url.password);
  }

  /** Without user and password. */
  toString(): string {
    return `${this.#url.protocol}//${this.#url.hostname}:${this.port}/${this.database}`;
  }

  toJSON(): string {
    return this.toString();
  }
}
