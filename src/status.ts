/** What `/health` says. Apart from the rest of HTTP, which a start need not wait for. */

export interface Health {
  status: 'ok' | 'draining' | 'unavailable';
  /** Sessions held, waiting or paired. */
  sessions: number;
}

/** 200 where the relay takes newcomers, and 503 where it does not. */
export function healthResponse(health: Health): Response {
  return Response.json(health, {
    status: health.status === 'ok' ? 200 : 503,
    headers: { 'cache-control': 'no-store' },
  });
}
