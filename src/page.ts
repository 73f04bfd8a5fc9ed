/** The page at `/`, for people. Loaded when the first of them comes. */
import type { Context } from 'hono';
import type { Facts, Health } from './http.ts';

export async function servePage(c: Context, facts: Facts, health: Health): Promise<Response> {
  return c.html(`${facts.name} ${health.status}`);
}
