/**
 * What Redis decides, as Lua scripts: who owns a code or a token id, what is counted over all instances, and whether a
 * message is still to be published. A script runs whole, so nothing comes between its steps.
 *
 * Each has a deadline, which Redis checks against its own clock: a command can reach Redis long after its sender gave
 * up, and must do nothing then. A claim counts only while its owner's inbox has a subscriber.
 */
import { NETWORK_FACTOR, WINDOW_MS } from '../admission/limits.ts';

// ARGV[1] is the deadline and ARGV[2] what every name begins with. Scripts build names themselves, so they do not run on
// Redis Cluster; a primary with replicas is fine.
const PRELUDE = `
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if now > tonumber(ARGV[1]) then return redis.error_reply('LATE it took too long to arrive') end

local function inbox(instance) return ARGV[2] .. 'inbox:' .. instance end
local function listens(instance)
  return redis.call('PUBSUB', 'NUMSUB', inbox(instance))[2] > 0
end
local function held(key)
  local claim = redis.call('GET', key)
  if claim and listens(string.match(claim, '^[^.]*')) then return claim end
end
local function claimed(key, claim, ttl)
  if (held(key) or claim) ~= claim then return false end
  redis.call('SET', key, claim, 'PX', ttl)
  return true
end

-- The limit of the client itself, and of the networks that it belongs to.
local function limit(i, max) if i == 0 then return tonumber(max) end return max * ${NETWORK_FACTOR} end
local function spent(key, max)
  local at = redis.call('LINDEX', key, -max)
  -- A time in the future was written before the clock was set back, and would count for too long.
  return at and now - at < ${WINDOW_MS} and now - at >= 0
end
local function count(key, max)
  redis.call('RPUSH', key, now)
  redis.call('LTRIM', key, -max, -1)
  redis.call('PEXPIRE', key, ${WINDOW_MS})
end
local function any_spent(first, last, max)
  for i = first, last do if spent(KEYS[i], limit(i - first, max)) then return true end end
end
local function count_all(first, last, max)
  for i = first, last do count(KEYS[i], limit(i - first, max)) end
end
-- A failed attempt on a code: KEYS[2] is the code's list, and the client's begin at KEYS[3].
local function failed(last, maxClient, maxCode)
  count_all(3, last, maxClient)
  if spent(KEYS[2], maxCode) then return 'burned' end
  count(KEYS[2], maxCode)
  return 'counted'
end
`;

const scripts = {
  /** KEYS: the code, its failed attempts, the client's failed attempts by network, its listens by network. */
  claimCode: `
    local claim, ttl, maxClient, maxCode, maxListens = ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
    local last = 2 + (#KEYS - 2) / 2
    if any_spent(3, last, maxClient) then return 'rate_limited' end
    for i = last + 1, #KEYS do
      local listened = tonumber(redis.call('GET', KEYS[i]) or 0)
      if listened >= limit(i - last - 1, maxListens) then return 'rate_limited' end
    end
    if spent(KEYS[2], maxCode) or not claimed(KEYS[1], claim, ttl) then
      failed(last, maxClient, maxCode)
      return 'otc_in_use'
    end
    for i = last + 1, #KEYS do
      if redis.call('INCR', KEYS[i]) == 1 then redis.call('PEXPIRE', KEYS[i], ${WINDOW_MS}) end
    end
    return 'ok'`,
  /** KEYS: the code, its failed attempts, the client's failed attempts by network. Returns the claim. */
  findCode: `
    local maxClient, maxCode = ARGV[3], ARGV[4]
    if any_spent(3, #KEYS, maxClient) then return 'rate_limited' end
    local claim = held(KEYS[1])
    if claim then return claim end
    failed(#KEYS, maxClient, maxCode)
    return 'otc_not_found'`,
  /** KEYS as for findCode. Counts a failed attempt. */
  failCode: `return failed(#KEYS, ARGV[3], ARGV[4])`,
  /** KEYS: the token id, the client's watches by network. */
  claimWatch: `
    local claim, ttl, max = ARGV[3], ARGV[4], ARGV[5]
    if any_spent(2, #KEYS, max) then return 'rate_limited' end
    count_all(2, #KEYS, max)
    return claimed(KEYS[1], claim, ttl) and 'ok' or 'jti_already_watched'`,
  /** KEYS: the token id, the used token ids, the client's refused inits by network. Returns the claim. */
  burn: `
    local id, ttl, max, maxUsed = ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6])
    local function refuse(why) count_all(3, #KEYS, max) return why end
    if any_spent(3, #KEYS, max) then return 'rate_limited' end
    local old = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, 100)
    if #old > 0 then redis.call('ZREM', KEYS[2], unpack(old)) end
    local till = redis.call('ZSCORE', KEYS[2], id)
    if till and tonumber(till) > now then return refuse('token_already_used') end
    local claim = held(KEYS[1])
    if not claim then return refuse('no_watcher') end
    if redis.call('ZCARD', KEYS[2]) >= maxUsed then return refuse('relay_overloaded') end
    redis.call('ZADD', KEYS[2], now + ttl, id)
    redis.call('PEXPIRE', KEYS[2], ttl)
    return claim`,
  /** KEYS: the code or token id. Claims it again, or for longer. Returns 0 where somebody else has it. */
  hold: `return claimed(KEYS[1], ARGV[3], ARGV[4]) and 1 or 0`,
  /** KEYS: the code or token id. */
  release: `if redis.call('GET', KEYS[1]) == ARGV[3] then redis.call('DEL', KEYS[1]) end return 1`,
  /** Returns how many instances heard it. */
  publish: `return redis.call('PUBLISH', inbox(ARGV[3]), ARGV[4])`,
  /**
   * KEYS: one that is written and removed, to notice a Redis that is full or a replica; and the used token ids. ARGV: instances. Returns Redis' clock, the number of used token ids, and who of the instances is absent.
   */
  beat: `
    redis.call('SET', KEYS[1], '')
    redis.call('DEL', KEYS[1])
    local answer = { now, redis.call('ZCARD', KEYS[2]) }
    for i = 3, #ARGV do if not listens(ARGV[i]) then table.insert(answer, ARGV[i]) end end
    return answer`,
} as const;

export type Script = keyof typeof scripts;

/** The scripts as ioredis takes them. */
export const sources = Object.fromEntries(
  Object.entries(scripts).map(([name, body]) => [name, { lua: PRELUDE + body }]),
);
