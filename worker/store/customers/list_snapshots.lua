-- include: records, show
-- One page of an account's snapshots, by the time of their creation.
-- Only reads.
-- ask: {account, server, from_ms, before_ms, descending, offset, limit, brief}; server, from_ms, before_ms and brief
-- may be missing
-- Answers {total, snapshot (see `show_snapshot`; if brief, see `brief_snapshot`), ...}.
local ask = cjson.decode(ARGV[1])
local index = snapshots_of(ask.account, ask.server)
if not index then return {0} end
local from, before = ask.from_ms or '-inf', ask.before_ms and '(' .. ask.before_ms or '+inf'
local page, range = {redis.call('ZCOUNT', index, from, before)}, ask.descending and 'ZREVRANGE' or 'ZRANGE'
-- by rank, because with LIMIT, Redis would walk over all entries of earlier pages
local older = ask.from_ms and redis.call('ZCOUNT', index, '-inf', '(' .. ask.from_ms) or 0
local newer = ask.before_ms and redis.call('ZCOUNT', index, ask.before_ms, '+inf') or 0
local first = ask.descending and newer or older
local stop = first + math.min(ask.offset + ask.limit, page[1]) -- exclusive
if first + ask.offset >= stop then return page end
for _, id in ipairs(redis.call(range, index, first + ask.offset, stop - 1)) do
  local row = ask.brief and brief_snapshot(id, ask.account, ask.server)
  page[#page + 1] = row or show_listed(index, 'snapshot:', id, ask, show_snapshot)
end
return page
