-- include: records
-- Pages of the operators' lists, which can be long.

local LOOKS = 2000 -- entries per call, to limit how long it blocks Redis
local looked = 0

-- Count the further entries that were read for one entry of the page.
local function look_further(many)
  looked = looked + many
end

-- The rank at which a page starts: after the last entry of the previous page, or at its former place if that was moved
-- or removed.
local function first_rank(ask, list)
  local after, descending = ask.after, ask.descending
  if not after and descending then return ask.until_ms and redis.call('ZCOUNT', list, ask.until_ms, '+inf') or 0 end
  if not after then return ask.since_ms and redis.call('ZCOUNT', list, '-inf', '(' .. ask.since_ms) or 0 end
  if redis.call('ZSCORE', list, after[2]) == after[1] then
    return redis.call(descending and 'ZREVRANK' or 'ZRANK', list, after[2]) + 1
  end
  if descending then return redis.call('ZCOUNT', list, '(' .. after[1], '+inf') end
  return redis.call('ZCOUNT', list, '-inf', '(' .. after[1])
end

-- Whether a list by time has no entries between the bounds from this one on.
local function is_beyond(ask, score)
  if ask.descending then return ask.since_ms and score < tonumber(ask.since_ms) end
  return ask.until_ms and score >= tonumber(ask.until_ms)
end

-- One page of a sorted set: the results of `show(member)`, without members for which it fails or returns nil. kind:
-- prefix of the members' keys, 'job:'.
-- ask: {descending, after: {score, member} or nil, limit, since_ms (inclusive) and until_ms (exclusive): bounds of
-- a list by time, or nil}. Returns {after, shown, ...}; after is {score, member} of the last entry
-- that was read, or {} at the end of the list.
local function walk(ask, list, kind, show)
  local rank, page = first_rank(ask, list), {{}}
  while looked < LOOKS do
    local many = math.min(ask.limit, LOOKS - looked)
    local found = redis.call(ask.descending and 'ZREVRANGE' or 'ZRANGE', list, rank, rank + many - 1, 'WITHSCORES')
    for i = 1, #found, 2 do
      if is_beyond(ask, tonumber(found[i + 1])) then
        page[1] = {}
        return page
      end
      page[#page + 1] = attempt(kind .. found[i], show, found[i])
      looked, rank = looked + 1, rank + 1
      page[1] = {found[i + 1], found[i]}
      if #page > ask.limit or looked >= LOOKS then return page end
    end
    if #found < 2 * many then
      page[1] = {}
      return page
    end
  end
  return page
end

-- The number of entries of a list by time between the bounds.
local function count_within(ask, list)
  return redis.call('ZCOUNT', list, ask.since_ms or '-inf', ask.until_ms and '(' .. ask.until_ms or '+inf')
end

-- The shortest of the lists.
local function shortest(lists)
  table.sort(lists, function(one, other) return redis.call('ZCARD', one) < redis.call('ZCARD', other) end)
  return lists[1]
end
