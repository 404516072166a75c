-- include: records
-- Pages of the operators' lists, which may be of any length.

local LOOKS = 2000 -- entries that one call looks at: a bound on how long it holds Redis

-- Where a page begins: after the entry that the page before ended with, or, where that has left the list or moved in
-- it, at its place. after: {score, member} or nil.
local function first_rank(list, descending, after)
  if not after then return 0 end
  if redis.call('ZSCORE', list, after[2]) == after[1] then
    return redis.call(descending and 'ZREVRANK' or 'ZRANK', list, after[2]) + 1
  end
  if descending then return redis.call('ZCOUNT', list, '(' .. after[1], '+inf') end
  return redis.call('ZCOUNT', list, '-inf', '(' .. after[1])
end

-- One page of a sorted set: what `show(member)` makes of its members, those left out for which it is nil or fails.
-- kind: of their keys, 'job:'.
-- ask: {descending, after, limit}. Answers {after, shown, ...}; after is {score, member} of the last entry that was
-- looked at, or {} at the end of the list.
local function walk(ask, list, kind, show)
  local rank, looked, page = first_rank(list, ask.descending, ask.after), 0, {{}}
  while looked < LOOKS do
    local many = math.min(ask.limit, LOOKS - looked)
    local found = redis.call(ask.descending and 'ZREVRANGE' or 'ZRANGE', list, rank, rank + many - 1, 'WITHSCORES')
    for i = 1, #found, 2 do
      page[#page + 1] = attempt(kind .. found[i], show, found[i])
      looked, rank = looked + 1, rank + 1
      page[1] = {found[i + 1], found[i]}
      if #page > ask.limit then return page end
    end
    if #found < 2 * many then
      page[1] = {}
      return page
    end
  end
  return page
end

-- The shortest of the lists.
local function shortest(lists)
  table.sort(lists, function(one, other) return redis.call('ZCARD', one) < redis.call('ZCARD', other) end)
  return lists[1]
end
