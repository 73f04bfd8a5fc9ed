/** The rules that Redis keeps, as it runs them: who owns what, and what is counted over all instances. */
import { WINDOW_MS } from '../admission/limits.ts';

// Names are built in two scripts, so Redis Cluster is not for these; a primary with replicas is.
const PRELUDE = `
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- Its sender has given up by now, and must not be surprised by what it did.
if now > tonumber(ARGV[2]) then return 'late' end
local function spent(key, max)
  return redis.call('LLEN', key) >= tonumber(max)
    and now - redis.call('LINDEX', key, -tonumber(max)) < ${WINDOW_MS}
end
local function count(key, max)
  local oldest = redis.call('LINDEX', key, 0)
  while oldest and now - oldest >= ${WINDOW_MS} do
    redis.call('LPOP', key)
    oldest = redis.call('LINDEX', key, 0)
  end
  if redis.call('RPUSH', key, now) > tonumber(max) then redis.call('LPOP', key) end
  redis.call('PEXPIRE', key, ${WINDOW_MS})
end
local function failed(client, maxClient, code, maxCode)
  count(client, maxClient)
  if spent(code, maxCode) then return 'burned' end
  count(code, maxCode)
  return 'counted'
end
-- A claim whose owner is dead is none.
local function held(key)
  local claim = redis.call('GET', key)
  if claim and redis.call('EXISTS', ARGV[1] .. (string.match(claim, '^[^.]+') or '')) == 1 then return claim end
end
`;

// ARGV[1] and ARGV[2] are the prelude's.
const scripts = {
  claimCode: `
    local claim, ttl, maxClient, maxCode, maxListens = ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
    if spent(KEYS[1], maxClient) or spent(KEYS[4], maxListens) then return 'rate_limited' end
    if spent(KEYS[2], maxCode) or held(KEYS[3]) then
      failed(KEYS[1], maxClient, KEYS[2], maxCode)
      return 'otc_in_use'
    end
    redis.call('SET', KEYS[3], claim, 'PX', ttl)
    count(KEYS[4], maxListens)
    return 'ok'`,
  findCode: `
    local maxClient, maxCode = ARGV[3], ARGV[4]
    if spent(KEYS[1], maxClient) then return 'rate_limited' end
    local claim = held(KEYS[3])
    if claim then return claim end
    failed(KEYS[1], maxClient, KEYS[2], maxCode)
    return 'otc_not_found'`,
  fail: `return failed(KEYS[1], ARGV[3], KEYS[2], ARGV[4])`,
  claimWatch: `
    local claim, ttl, max, own = ARGV[3], ARGV[4], ARGV[5], ARGV[6]
    if spent(KEYS[1], max) then return 'rate_limited' end
    count(KEYS[1], max)
    local other = held(KEYS[2])
    if other and other ~= own then return 'jti_already_watched' end
    redis.call('SET', KEYS[2], claim, 'PX', ttl)
    return 'ok'`,
  init: `
    local me, ttl, max, isFull = ARGV[3], ARGV[4], ARGV[5], ARGV[6]
    local function refuse(why) count(KEYS[1], max) return why end
    if spent(KEYS[1], max) then return 'rate_limited' end
    if redis.call('EXISTS', KEYS[2]) == 1 then return refuse('token_already_used') end
    local claim = held(KEYS[3])
    if not claim then return refuse('no_watcher') end
    if string.match(claim, '^[^.]+') == me then
      if isFull == '1' then return refuse('relay_overloaded') end
      redis.call('SET', KEYS[2], '', 'PX', ttl)
    end
    return claim`,
  hold: `
    local claim, ttl = ARGV[3], ARGV[4]
    local other = held(KEYS[1])
    if other and other ~= claim then return 0 end
    redis.call('SET', KEYS[1], claim, 'PX', ttl)
    return 1`,
  release: `if redis.call('GET', KEYS[1]) == ARGV[3] then redis.call('DEL', KEYS[1]) end return 1`,
  beat: `
    local ttl, channel, beat = ARGV[3], ARGV[4], ARGV[5]
    local answer = { redis.call('EXISTS', KEYS[1]), now }
    redis.call('SET', KEYS[1], '', 'PX', ttl)
    redis.call('PUBLISH', channel, beat)
    for i = 6, #ARGV do
      if redis.call('EXISTS', ARGV[1] .. ARGV[i]) == 0 then table.insert(answer, ARGV[i]) end
    end
    return answer`,
  resign: `redis.call('DEL', KEYS[1]) return 1`,
} as const;

export type Script = keyof typeof scripts;

/** The scripts as Redis takes them, each whole. */
export const sources = Object.entries(scripts).map(
  ([name, body]) => [name, PRELUDE + body] as const,
);

/** Those that are as right late as in time; any other is not run any more when its sender has given up. */
export const TIMELESS: ReadonlySet<Script> = new Set(['release', 'beat', 'resign']);
